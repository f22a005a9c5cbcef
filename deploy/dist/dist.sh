#!/bin/sh
# Builds what a release consists of, into target/dist: a tarball with the stripped binary, man pages and completions, a Debian package, the
# chart, a bill of materials, checksums. Run by `make dist`, after `make chart`.
#
# The same commit gives the same files, byte for byte, on the same toolchain.
set -eu
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
dist=target/dist
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
commit=$(git describe --always --dirty --abbrev=12 --exclude='*')
target=$(rustc -vV | sed -n 's/^host: //p')
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

BALANCE_SYNC_COMMIT=$commit $cargo build --release --locked --package balance-sync-cli
name=balance-sync-$version-$target
stage=$dist/$name
rm -rf "$stage" "$dist"/balance-sync-*.tar.gz "$dist"/*.deb "$dist"/*.cdx.json "$dist/SHA256SUMS"
mkdir -p "$stage/bin" "$stage/man" "$stage/completions"
strip --strip-all -o "$stage/bin/balance-sync" target/release/balance-sync
program=$stage/bin/balance-sync
"$program" --version
"$program" man "$stage/man"
"$program" completions bash >"$stage/completions/balance-sync.bash"
"$program" completions zsh >"$stage/completions/_balance-sync"
"$program" completions fish >"$stage/completions/balance-sync.fish"
cp LICENSE README.md config/default.toml docs/CHANGELOG.md deploy/systemd/balance-sync.service "$stage"

python3 deploy/dist/sbom.py "$version" "$commit" "$target" >"$dist/balance-sync-$version.cdx.json"
sh deploy/dist/deb.sh "$stage" "$dist" "$version"
tar --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --directory "$dist" "$name" \
  | gzip --best --no-name >"$dist/$name.tar.gz"
rm -rf "$stage"
(cd "$dist" && sha256sum -- *.tar.gz *.tgz *.deb *.cdx.json >SHA256SUMS && cat SHA256SUMS)
