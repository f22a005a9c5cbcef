#!/bin/sh
# Builds the container image of a release by buildah, without a daemon and without a base image: the stripped binary, and from Debian's
# packages the libraries that it links and the certificate authorities. Run by `make image`, after `make dist`; needs Debian, buildah
# and root, or a user namespace (buildah unshare).
#
# There is no shell in it. Probes are HTTP's: /livez and /readyz.
set -eu
cd "$(dirname "$0")/../.."
dist=target/dist
limit=40000000
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
commit=$(git describe --always --dirty --abbrev=12 --exclude='*')
target=$(rustc -vV | sed -n 's/^host: //p')
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
work=$(mktemp -d)
container=""
cleanup() {
  [ -z "$container" ] || buildah rm "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
files=$work/files root=$work/root
mkdir -p "$files" "$root/usr/bin" "$root/usr/share/doc/balance-sync" "$root/etc/ssl/certs"

name=balance-sync-$version-$target
tar --extract --gzip --file "$dist/$name.tar.gz" --directory "$work"
binary=$work/$name/bin/balance-sync
install --mode=755 "$binary" "$root/usr/bin/balance-sync"
install --mode=644 LICENSE "$dist/balance-sync-$version.cdx.json" "$root/usr/share/doc/balance-sync/"

# Exactly the packages that this Debian has, as the binary was linked against them.
packages="libc6 libgcc-s1 ca-certificates"
(cd "$work" && apt-get download --option APT::Sandbox::User=root --quiet --quiet $packages)
for file in "$work"/*.deb; do
  dpkg-deb --extract "$file" "$files"
  package=$(dpkg-deb --field "$file" Package)
  # Scanners know by these which packages an image has.
  mkdir -p "$root/var/lib/dpkg/status.d"
  { dpkg-deb --field "$file" Package Version Architecture Maintainer Source Description; echo "Status: install ok installed"; } \
    >"$root/var/lib/dpkg/status.d/$package"
  install -D --mode=644 "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
done
ldd "$binary" | sed -n 's|^[^/]*\(/[^ ]*\) .*|\1|p' | while read -r library; do
  found=$files$(realpath --no-symlinks "$library")
  [ -e "$found" ] || found=$files/usr$library
  [ -e "$found" ] || found=$files${library#/usr}
  install -D --mode=755 "$found" "$root$library"
done
# Names are looked up by libc itself.
cat "$files"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
echo "balance-sync:x:10001:10001::/:/usr/sbin/nologin" >"$root/etc/passwd"
echo "balance-sync:x:10001:" >"$root/etc/group"
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

size=$(du --summarize --apparent-size --bytes "$root" | cut -f1)
[ "$size" -le "$limit" ] || { echo "the image has $size bytes, $limit are allowed" >&2; exit 1; }

container=$(buildah from scratch)
buildah copy --quiet "$container" "$root" / >/dev/null
buildah config \
  --user 10001:10001 --port 8090 --stop-signal SIGTERM --entrypoint '["/usr/bin/balance-sync"]' --cmd run \
  --env BALANCE_SYNC__ADMIN__LISTEN=0.0.0.0:8090 --env BALANCE_SYNC__LOG__FORMAT=json \
  --label org.opencontainers.image.title=balance-sync \
  --label org.opencontainers.image.description="Carries balances of a ledger from Redis to each tenant's Postgres" \
  --label org.opencontainers.image.version="$version" \
  --label org.opencontainers.image.revision="$commit" \
  --label org.opencontainers.image.created="$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
  --label org.opencontainers.image.licenses=Apache-2.0 \
  "$container"
image=$(buildah commit --quiet --timestamp "$SOURCE_DATE_EPOCH" "$container" "balance-sync:$version")

# What was built runs, as what it is meant to run as.
said=$(buildah run --isolation chroot "$container" -- /usr/bin/balance-sync --version)
[ "$said" = "balance-sync $version ($commit)" ] || { echo "the image's program says: $said" >&2; exit 1; }
who=$(buildah inspect --type image --format '{{.OCIv1.Config.User}} {{index .OCIv1.Config.Labels "org.opencontainers.image.revision"}}' "$image")
[ "$who" = "10001:10001 $commit" ] || { echo "the image's user and revision: $who" >&2; exit 1; }
archive=$dist/balance-sync-$version-image.tar
rm -f "$archive"
buildah push --quiet "$image" "oci-archive:$archive:balance-sync:$version"
echo "$archive: $size bytes unpacked, $(stat --format=%s "$archive") packed"
