"""The node's side of networks: links, DHCP, the way out, metadata, and the role that uses them."""
