# Writes a document of measurements; sourced after what defines DOCUMENT, `head_of_document` and `section`.
#
# Each release of Debian has a section of its own; a run replaces that of its release.

write_document() {
  local others
  others=$(mktemp)
  [ ! -e "$DOCUMENT" ] || awk -v mine="$(section_title)" '/^## / { other = ($0 != mine) } other' "$DOCUMENT" >"$others"
  { head_of_document; { section_title; echo; section; cat "$others"; } | sort_sections; } >"$DOCUMENT.new"
  mv "$DOCUMENT.new" "$DOCUMENT"
  rm "$others"
}

section_title() { (. "$base/etc/os-release" && echo "## Debian $VERSION_ID ($VERSION_CODENAME)"); }

# On what, and with what end.
platform() {
  echo "$(date +%F), systemd $(version_of systemd), RabbitMQ $(version_of rabbitmq-server), embeddings $(version_of embeddings)," \
    "Linux $(uname -r | cut -d- -f1), $(nproc) cores: $1"
  echo
}

version_of() { inside dpkg-query -W -f '${Version}' "$1"; }

# By their titles; a section holds no line that begins with `## `.
sort_sections() { awk '/^## / { key = $0 } { print key "\t" NR "\t" $0 }' | sort -t "$(printf '\t')" -k1,1 -k2,2n | cut -f3-; }
