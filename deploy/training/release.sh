# Copy the version of $NAME that passed gate.sh from $FROM to $TO, and let `stable` name it there.
set -eu
copied=$(models copy "$NAME/$(cat "$STATE/version")" --models "$FROM" --to "$TO" --json)
version=$(printf '%s' "$copied" | python -c 'import json, sys; print(json.load(sys.stdin)["version"])')
models promote "$NAME/$version" --models "$TO"
