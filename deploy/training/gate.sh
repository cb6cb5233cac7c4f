# The newest version of $NAME in $FROM, as the first pod of the Job finds it, must pass `analyze` with
# the arguments given. $STATE, of this Job alone, keeps which it is and that it passed. Where the volume
# or the repository can't be used the status is 75: try again.
set -eu
# sh as process 1 hears no signal but by a trap, and while it waits for a command but by `wait`; what
# still runs ends with it.
trap 'exit 143' INT TERM # SIGINT is what the image names to stop it
mkdir -p "$STATE" || exit 75
if [ ! -e "$STATE/version" ]; then
  models list --models "$FROM" --json >"$STATE/listed" &
  wait $! || exit 75
  true >"$STATE/newest" || exit 75 # not `:`, at whose redirection sh would end with 2
  python -c '
import json, sys
found = [row["version"] for row in json.load(sys.stdin) if row["name"] == sys.argv[1]]
print(max(found) if found else sys.exit(f"error: there is no version of {sys.argv[1]}"))
' "$NAME" <"$STATE/listed" >"$STATE/newest"
  mv "$STATE/newest" "$STATE/version" || exit 75
fi
version=$(cat "$STATE/version") || exit 75 # else it would be the default version
if [ ! -e "$STATE/passed" ]; then
  analyze "$NAME/$version" --models "$FROM" "$@" &
  wait $!
  touch "$STATE/passed" || exit 75
fi
