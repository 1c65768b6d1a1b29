"""``python -m appliance.cli``: how a node starts itself in the background."""

from appliance.cli import main

if __name__ == "__main__":
    main()
