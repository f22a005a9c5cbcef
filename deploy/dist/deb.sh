#!/bin/sh
# Builds the Debian package: deb.sh STAGE OUT VERSION, where STAGE has bin/, man/ and completions/. Needs dpkg-dev.
set -eu
stage=$1 out=$2 version=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
name=balance-sync
arch=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=$work/$name
umask 022

install -D --mode=755 "$stage/bin/$name" "$package/usr/bin/$name"
install -D --mode=644 "$root/deploy/systemd/$name.service" "$package/lib/systemd/system/$name.service"
install -D --mode=644 "$root/deploy/dist/$name.toml" "$package/etc/$name/$name.toml"
install -D --mode=644 "$root/config/default.toml" "$package/usr/share/doc/$name/default.toml"
install -D --mode=644 "$root/LICENSE" "$package/usr/share/doc/$name/copyright"
gzip --best --no-name <"$root/docs/CHANGELOG.md" >"$package/usr/share/doc/$name/changelog.gz"
install -D --mode=644 "$stage/completions/$name.bash" "$package/usr/share/bash-completion/completions/$name"
install -D --mode=644 "$stage/completions/_$name" "$package/usr/share/zsh/vendor-completions/_$name"
install -D --mode=644 "$stage/completions/$name.fish" "$package/usr/share/fish/vendor_completions.d/$name.fish"
for page in "$stage"/man/*.1; do
  mkdir -p "$package/usr/share/man/man1"
  gzip --best --no-name <"$page" >"$package/usr/share/man/man1/$(basename "$page").gz"
done

# The libraries by what the binary asks for, with the versions it needs.
mkdir -p "$work/debian" "$package/DEBIAN"
printf 'Source: %s\nPackage: %s\nArchitecture: %s\n' "$name" "$name" "$arch" >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O "$package/usr/bin/$name" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$libraries" ] || { echo "$0: dpkg-shlibdeps found no libraries" >&2; exit 1; }

cat >"$package/DEBIAN/control" <<END
Package: $name
Version: $version
Architecture: $arch
Maintainer: balance-sync <balance-sync@localhost>
Section: database
Priority: optional
Depends: $libraries, ca-certificates
Installed-Size: $(du --summarize --apparent-size --block-size=1024 "$package" | cut -f1)
Description: worker that carries a ledger's balances from Redis to Postgres
 A ledger keeps the hot balances of its tenants in Redis. The workers of
 balance-sync write them to each tenant's Postgres in near real time.
END
echo "/etc/$name/$name.toml" >"$package/DEBIAN/conffiles"
# Nothing is enabled or started by an installation: a worker has to be configured first. An upgrade restarts one that runs; it drains.
cat >"$package/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  systemctl try-restart balance-sync.service
fi
END
cat >"$package/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now balance-sync.service
fi
END
cat >"$package/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
if [ "$1" = purge ]; then
  rm -f /etc/balance-sync/environment
  rmdir --ignore-fail-on-non-empty /etc/balance-sync 2>/dev/null || true
fi
END
chmod 755 "$package/DEBIAN/postinst" "$package/DEBIAN/prerm" "$package/DEBIAN/postrm"
(cd "$package" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort --zero-terminated | xargs --null md5sum >DEBIAN/md5sums)
find "$package" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:?}" {} +
dpkg-deb --root-owner-group -Zxz --build "$package" "$out/${name}_${version}_${arch}.deb" >/dev/null
