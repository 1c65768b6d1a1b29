#!/bin/bash
# Make this machine and this checkout ready: Debian packages, .venv, our own distributions in it.
# Safe to repeat and to interrupt: the next call goes on where this one stopped. When nothing has
# changed it ends within a second and says nothing. With --check it only says so by its status, and
# with --cluster it also installs the packages that only clusters need.
set -euo pipefail
umask 022  # root makes what every user runs

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
setup=$root/setup
venv=$root/.venv
logs=$root/var/log
stamps=$venv/.setup          # one file a finished phase, holding a digest of what it was made from
unfinished=$venv/.setup-unfinished
python=/usr/bin/python3      # Debian's bindings fit no other
debian_modules="nftables"    # Python modules that only Debian has, made importable in .venv
started=$SECONDS

check='' cluster=''
for option; do
    case $option in
        --check) check=1 ;;
        --cluster) cluster=1 ;;
        *) printf 'setup: there is no option %s\n' "$option" >&2 && exit 2 ;;
    esac
done

say() {
    printf '[%3d s] setup: %s\n' $((SECONDS - started)) "$*"
}

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

child='' stopping='' patient=''

# Ctrl-C and the like: pip can be stopped anywhere, apt would leave half-installed packages behind.
stop() {
    stopping=1
    if [ -z "$child" ]; then
        printf 'setup: interrupted; run it again to go on.\n' >&2
        exit 130
    elif [ -n "$patient" ]; then
        say "stop as soon as apt has finished what it began"
    else
        kill -TERM -- "-$child" 2>/dev/null || true
    fi
}
trap stop INT TERM HUP

# run LOG HINT COMMAND...: run with the output in var/log/LOG, and show its end when it fails.
# The command has a session of its own, so that it gets no signals but those of stop().
run() {
    local log=$logs/$1 hint=$2 status
    shift 2
    mkdir -p "$logs"
    setsid "$@" >"$log" 2>&1 </dev/null &
    child=$!
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=''
    [ -z "$stopping" ] || stop
    [ $status -ne 0 ] || return 0
    printf '%s\n' "----- the end of $log" >&2
    # pip names what it works on long before it says what is wrong with it.
    grep -E '^(Obtaining|Collecting) ' "$log" | tail -n 1 >&2 || true
    tail -n 15 "$log" >&2
    printf '%s\n' "-----" >&2
    die "'$(basename "$1")' failed with status $status. $hint"
}

digest() {
    cat -- "$@" 2>/dev/null | sha256sum | cut -d' ' -f1
}

is_done() { # PHASE DIGEST
    [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]
}

mark_done() { # PHASE DIGEST
    mkdir -p "$stamps"
    printf '%s\n' "$2" >"$stamps/$1.new"
    mv "$stamps/$1.new" "$stamps/$1"
}

# Print the packages of a list that are not installed.
missing_packages() { # LIST
    local wanted
    wanted=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1")
    # dpkg-query fails for names that it has never heard of: those are missing, too.
    # shellcheck disable=SC2086
    comm -23 <(sort <<<"$wanted") <(
        dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
            sed -n 's/^installed //p' | sort
    )
}

install_packages() {
    local missing idle=''
    missing=$(missing_packages "$setup/debian-packages.txt")
    [ -z "$cluster" ] || idle=$(missing_packages "$setup/debian-packages-cluster.txt")
    [ -n "$missing$idle" ] || return 0
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
    local apt=(apt-get -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 -y)
    local hint="Check the network and the disk space, then run it again."
    say "fetch the package lists"
    run apt-update.log "Check the network and /etc/apt, then run it again." "${apt[@]}" update
    patient=1
    if [ -n "$(dpkg --audit)" ]; then
        say "complete an installation that was interrupted"
        run apt-repair.log "Repair the packages ('apt-get -f install'), then run it again." \
            "$setup/repair-packages" "${apt[@]}"
        missing=$(missing_packages "$setup/debian-packages.txt")
    fi
    if [ -n "$missing" ]; then
        say "install $(wc -w <<<"$missing") Debian packages, see var/log/apt-install.log"
        # shellcheck disable=SC2086
        run apt-install.log "$hint" "${apt[@]}" --no-install-recommends install $missing
    fi
    if [ -n "$idle" ]; then
        say "install $(wc -w <<<"$idle") Debian packages for clusters, see var/log/apt-cluster.log"
        # shellcheck disable=SC2086
        run apt-cluster.log "$hint" "$setup/install-idle" "${apt[@]}" -- $idle
    fi
    patient=''
}

python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Make .venv, or make it again when it is half made or belongs to another Python.
make_venv() {
    local version
    version=$(python_version $python) || die "$python does not run: install Debian's package python3."
    [ "$(printf '%s\n' 3.11 "$version" | sort -V | head -n 1)" = 3.11 ] ||
        die "Python 3.11 or newer is needed, and $python is $version: Debian 12 and Ubuntu 24.04 have it."
    if [ -e "$venv" ] && [ ! -e "$unfinished" ]; then
        [ "$(python_version "$venv/bin/python")" != "$version" ] || return 0
        [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] ||
            die "$venv is no Python environment: move it away, then run it again."
        [ ! -L "$venv" ] || die "$venv is a link to an environment that does not work: remove the link."
    fi
    say "make .venv with Python $version"
    rm -rf -- "$venv"
    mkdir "$venv"
    : >"$unfinished"
    run venv.log "Check the disk space, then run it again." $python -m venv "$venv"
    rm "$unfinished"
}

pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)

install_requirements() {
    local wanted
    wanted=$(digest "$setup/requirements-build.txt" "$setup/requirements.txt")
    ! is_done requirements "$wanted" || return 0
    say "install the Python packages, a minute or two, see var/log/pip-requirements.log"
    local hint="Check the network and pip's settings ('pip config list'), then run it again."
    run pip-build.log "$hint" "${pip[@]}" install --require-hashes --no-build-isolation \
        -r "$setup/requirements-build.txt"
    run pip-requirements.log "$hint" "${pip[@]}" install --require-hashes --no-build-isolation \
        -r "$setup/requirements.txt"
    mark_done requirements "$wanted"
}

link_debian_modules() {
    local module folder site=$venv/debian-modules
    folder=/usr/lib/python3/dist-packages
    mkdir -p "$site"
    for module in $debian_modules; do
        [ -e "$folder/$module" ] || die "Debian's Python module $module is not in $folder."
        ln -sfn "$folder/$module" "$site/$module"
    done
    printf '%s\n' "$site" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/debian-modules.pth"
}

# The folders of our distributions: the root and every plugin that has a pyproject.toml.
distributions() {
    local file
    for file in "$root"/pyproject.toml "$root"/plugins/*/pyproject.toml; do
        [ ! -e "$file" ] || dirname "$file"
    done
}

install_distributions() {
    local folders wanted folder arguments=()
    mapfile -t folders < <(distributions)
    [ ${#folders[@]} -gt 0 ] || return 0
    # The folder is part of it: an editable installation names where the checkout is.
    wanted=$(printf '%s\n' "${folders[@]}" | digest - "${folders[@]/%//pyproject.toml}")
    ! is_done distributions "$wanted" || return 0
    say "install ${#folders[@]} distributions of this checkout in place"
    for folder in "${folders[@]}"; do
        arguments+=(-e "$folder")
    done
    run pip-editable.log "Look at the pyproject.toml that it names." \
        "${pip[@]}" install --no-deps --no-build-isolation "${arguments[@]}"
    mark_done distributions "$wanted"
}

# Digest of everything that a finished set-up was made from.
state() {
    distributions | digest - "${BASH_SOURCE[0]}" "$setup"/*.txt "$root"/pyproject.toml \
        "$root"/plugins/*/pyproject.toml
}

is_complete() {
    [ ! -e "$unfinished" ] && is_done all "$(state)" && [ -x "$venv/bin/python" ] &&
        [ "$(readlink -f "$venv/bin/python")" = "$(readlink -f $python)" ] &&
        [ -z "$(missing_packages "$setup/debian-packages.txt")" ] &&
        { [ -z "$cluster" ] || [ -z "$(missing_packages "$setup/debian-packages-cluster.txt")" ]; }
}

# For who only wants to know: nothing is changed, and no root is needed.
if [ -n "$check" ]; then
    is_complete
    exit
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    die "this is for Debian 12, Ubuntu 24.04 or newer: no apt-get was found."
fi
! is_complete || exit 0
[ $EUID -eq 0 ] || exec "$setup/as-root" "${BASH_SOURCE[0]}" "$@"

mkdir -p "$root/var"
exec 9>"$root/var/.setup.lock"
flock -n 9 || { say "another set-up is running, waiting for it"; flock 9; }

install_packages
make_venv
install_requirements
link_debian_modules
install_distributions
mark_done all "$(state)"
say "ready"
