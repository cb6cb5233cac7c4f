# Copy the version of $NAME that passed gate.sh from $FROM to $TO, and let `stable` name it there.
set -eu
# sh as process 1 passes no signal on, and hears none while it waits for a command but by `wait`.
trap 'kill $!; exit 143' TERM
models copy "$NAME/$(cat "$STATE/version")" --models "$FROM" --to "$TO" --json >"$STATE/copied" &
wait $!
version=$(python -c 'import json, sys; print(json.load(sys.stdin)["version"])' <"$STATE/copied")
exec models promote "$NAME/$version" --models "$TO"
