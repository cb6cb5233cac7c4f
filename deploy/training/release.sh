# Copy the newest version of $NAME in $FROM to $TO, and let `stable` name it there.
set -eu
version=$(models copy "$NAME" --models "$FROM" --to "$TO" --json |
  python -c 'import json, sys; print(json.load(sys.stdin)["version"])')
models promote "$NAME/$version" --models "$TO"
