# The base image of these tests, made with debootstrap, for no image registry is asked: Debian with
# the same Python as the base that the Dockerfiles name. Sourced by build.sh.

make_base() { # IMAGE FOLDER
  local image=$1 root=$2/base mirror container
  if ! bd images --format '{{.Name}}' | grep -qx "$image"; then
    mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -n 1)
    rm -rf "$root"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
      trixie "$root" "$mirror" >"$2/debootstrap.log" || { tail "$2/debootstrap.log" >&2; return 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
      "$root"/usr/share/{doc,man,locale}/*
    # As in the base that the Dockerfiles name: it must not come through.
    install -m 755 /dev/null "$root/usr/local/bin/pip3.13"
    # What this machine needs to reach its package index: certificates and pip's settings.
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
    container=$(bd from scratch)
    bd add --quiet "$container" "$root" /
    bd config --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$container"
    bd commit --quiet --rm "$container" "$image"
    rm -rf "$root"
  fi
}
