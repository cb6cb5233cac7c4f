# Runs an image as an engine would, where there is none: a read-only root, /tmp in memory, no
# network but loopback, the image's own user and environment. Sourced by build.sh.

setting() { # IMAGE FIELD...: values of the image's configuration, one a line
  bd inspect --type image --format "{{range .Docker.Config.$2}}{{println .}}{{end}}" "$1" | sed '/^$/d'
}

jail() { # IMAGE [FOLDER:TARGET[:ro]]... -- COMMAND...
  local image=$1 container user
  local -a volumes=() environment=()
  shift
  while [ "$1" != -- ]; do volumes+=("$1"); shift; done
  shift
  mapfile -t environment < <(setting "$image" Env)
  user=$(bd inspect --type image --format '{{.Docker.Config.User}}' "$image")
  container=$(bd from --pull-never "$image")
  exec env -i "${environment[@]}" unshare --mount --pid --net --fork --kill-child \
    bash -euc "$(declare -f enter); enter \"\$@\"" jail \
    "$(bd mount "$container")" "$user" "${volumes[@]}" -- "$@"
}

enter() { # ROOT USER [FOLDER:TARGET[:ro]]... -- COMMAND...: in the new namespaces
  local root=$1 user=$2 from target mode PATH_OF_IMAGE=$PATH
  shift 2
  PATH=/usr/sbin:/usr/bin:/sbin:/bin
  ip link set lo up
  mount --make-rprivate /
  mount --bind "$root" "$root"
  while [ "$1" != -- ]; do
    IFS=: read -r from target mode <<<"$1"
    mkdir -p "$root$target"
    mount --bind "$from" "$root$target"
    [ "${mode:-rw}" = rw ] || mount -o "remount,bind,$mode" "$root$target"
    shift
  done
  shift
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  mount -o remount,bind,ro "$root"
  cd "$root"
  PATH=/usr/sbin:/usr/bin:/sbin:/bin exec chroot --userspec="$user" "$root" \
    /usr/bin/env --chdir=/tmp PATH="$PATH_OF_IMAGE" "$@"
}

in_running() { # PID IMAGE COMMAND...: beside the command that runs in a jail, as `docker exec`
  local pid=$1 image=$2
  local -a environment=()
  shift 2
  mapfile -t environment < <(setting "$image" Env)
  nsenter --target "$pid" --mount --net --pid --root --wd --setuid 10001 --setgid 10001 \
    /usr/bin/env -i "${environment[@]}" "$@"
}
