#!/usr/bin/env bash
# base.sh NAME: makes the image NAME that the Dockerfile can start from where no registry of images can be reached, a
# small Debian 12 with its Python 3.11. It wants root, podman and debootstrap; packages come from apt's mirror here.
set -euo pipefail

readonly name=$1 suite=bookworm
mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v suite="${suite}" '$1 == suite && $2 == "main" && !seen++ {print $3}')

root=$(mktemp -d -p /var/tmp)
trap 'rm -rf --one-file-system "${root}"' EXIT
chmod 755 "${root}" # it becomes / of the image, where everybody must get in
debootstrap --variant=minbase --include=ca-certificates,libpython3-dev,python3,python3-venv \
  "${suite}" "${root}" ${mirror:+"${mirror}"}
rm -rf "${root}"/var/cache/apt/*.bin "${root}"/var/cache/apt/archives/*.deb "${root}"/var/lib/apt/lists/*
# The Dockerfile calls apt in it: it shall reach from there what it reaches from here.
apt-config dump | grep -E '^Acquire::(http|https|Check)' > "${root}/etc/apt/apt.conf.d/90host" || true
tar -C "${root}" -c . | podman import --change 'CMD ["python3"]' - "${name}"
