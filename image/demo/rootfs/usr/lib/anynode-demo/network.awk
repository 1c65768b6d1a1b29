# Turn a flattened network description (cloud-init's version 1 or 2, or OpenStack's
# network_data.json) into lines "CARD WHAT VALUE": CARD is a MAC address, a name, or "any";
# WHAT is address, gateway, dns, mtu or route.

BEGIN { FS = "\t" }

{ path = $1; sub(/^network\//, "", path); value[path] = $2; order[++n] = path }

END {
    for (i = 1; i <= n; i++) {
        split(order[i], p, "/")
        if (p[1] == "ethernets") version2(order[i])
        else if (p[1] == "config") version1(order[i])
        else if (p[1] == "networks") openstack(order[i])
        else if (p[1] == "links" && p[3] == "mtu" && value[order[i]] != "") say(link(value["links/" p[2] "/id"]), "mtu", value[order[i]])
        else if (p[1] == "services" && p[3] == "address") say("any", "dns", value[order[i]])
    }
}

function say(card, what, one) { if (one != "") print card, what, one }

function version2(path,    card) {
    card = value["ethernets/" p[2] "/match/macaddress"]
    card = card == "" ? p[2] : tolower(card)
    if (p[3] == "addresses") say(card, "address", value[path])
    else if (p[3] == "mtu") say(card, "mtu", value[path])
    else if (p[3] ~ /^gateway[46]$/) say(card, "gateway", value[path])
    else if (p[3] == "nameservers" && p[4] == "addresses") say(card, "dns", value[path])
    else if (p[3] == "routes" && p[5] == "to") route(card, value[path], value["ethernets/" p[2] "/routes/" p[4] "/via"])
}

function version1(path,    card, subnet) {
    if (value["config/" p[2] "/type"] == "nameserver" && p[3] == "address") { say("any", "dns", value[path]); return }
    card = value["config/" p[2] "/mac_address"]
    card = card == "" ? value["config/" p[2] "/name"] : tolower(card)
    subnet = "config/" p[2] "/subnets/" p[4]
    if (p[3] == "mtu") say(card, "mtu", value[path])
    else if (p[3] != "subnets") return
    else if (p[5] == "address") say(card, "address", with_mask(value[path], value[subnet "/netmask"]))
    else if (p[5] == "gateway") say(card, "gateway", value[path])
    else if (p[5] == "dns_nameservers") say(card, "dns", value[path])
    else if (p[5] == "routes" && p[7] ~ /^(network|destination)$/)
        route(card, with_mask(value[path], value[subnet "/routes/" p[6] "/netmask"]), value[subnet "/routes/" p[6] "/gateway"])
}

function openstack(path,    card, base) {
    card = link(value["networks/" p[2] "/link"])
    base = "networks/" p[2] "/routes/" p[4]
    if (p[3] == "ip_address") say(card, "address", with_mask(value[path], value["networks/" p[2] "/netmask"]))
    else if (p[3] == "gateway") say(card, "gateway", value[path])
    else if (p[3] == "dns_nameservers") say(card, "dns", value[path])
    else if (p[3] == "routes" && p[5] == "network") route(card, with_mask(value[path], value[base "/netmask"]), value[base "/gateway"])
}

function link(id,    j) {
    for (j = 0; ("links/" j "/id") in value; j++)
        if (value["links/" j "/id"] == id) return tolower(value["links/" j "/ethernet_mac_address"])
    return "any"
}

function with_mask(address, mask) { return address ~ /\// || mask == "" ? address : address "/" mask }

function route(card, to, via) {
    if (via == "") return
    if (to ~ /^(default|0\.0\.0\.0\/0(\.0\.0\.0)?|::\/0)$/) say(card, "gateway", via)
    else print card, "route", to, via
}
