#!/bin/sh
# Writes the digest of every image of other makers behind its tag, in the Dockerfile and the compose file (`make pin`).
# Run it again after changing a tag. Asks the images' registry, through docker.
set -eu
cd "${1:-$(dirname "$0")/..}"

files="Dockerfile docker-compose.yml"
# shellcheck disable=SC2086 # two words are meant
images=$(sed -nE 's/^(ARG PYTHON_IMAGE=| +image: )([^@]+)(@.*)?$/\2/p' $files | grep -v '^rerankd:' | sort -u)
for image in $images; do
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
    case $digest in sha256:*) ;; *) echo "no digest for $image: $digest" >&2; exit 1 ;; esac
    # shellcheck disable=SC2086
    sed -i -E "s|^(ARG PYTHON_IMAGE=\| +image: )$image(@.*)?\$|\1$image@$digest|" $files
    echo "$image@$digest"
done
