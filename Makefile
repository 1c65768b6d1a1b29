# What one does with a checkout. `make` alone lists the targets.
# A minimal Debian has no make: apt-get install make. Everything else is installed by `make setup`.

# Targets depend on the state of the machine, not on files: each checks for itself, quickly.
.PHONY: help setup setup-cluster image clients run stop cluster cluster-stop sandbox test test-faults bench lint

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: ## install what is missing on this machine, and make .venv
	@setup/setup.sh

setup-cluster: setup ## install also what only clusters need: RabbitMQ and PostgreSQL, not started
	@setup/setup.sh --cluster

image: setup ## build the demo image, if the one in the cache is not up to date
	@setup/as-root image/demo/build.py

clients: setup ## install the EC2 clients that only the tests use
	@setup/as-root .venv/bin/python setup/clients.py

run: setup image ## start a node on this machine and an instance on the node
	@setup/as-root .venv/bin/anynode demo up

stop: ## stop that node and remove everything it made
	@if [ -x .venv/bin/anynode ]; then setup/as-root .venv/bin/anynode demo down; \
	elif [ -e /var/lib/anynode ] || [ -e /run/anynode ]; then \
		echo "A node's folders are here (/var/lib/anynode, /run/anynode), but no .venv:" \
			"run \`make setup\`, then \`make stop\`." >&2; exit 1; \
	else echo "There is nothing to stop: no node was ever set up here (no .venv)."; fi

cluster: setup-cluster image ## start a cluster of three nodes on this machine, with an instance on each; ARGS="--fake 100 …"
	@setup/as-root .venv/bin/python -m tests.cluster up $(ARGS)

cluster-stop: ## stop that cluster and remove everything it made
	@setup/as-root .venv/bin/python -m tests.cluster down

sandbox: ## run an EC2 endpoint without instances behind it, without root; ARGS="--nodes 3 …"
	@setup/sandbox.py --env-file var/sandbox.env $(ARGS)

test: setup-cluster image clients lint ## run every check and test
	@setup/as-root .venv/bin/python -m pytest -n auto --maxprocesses 4

test-faults: setup-cluster image ## run the whole matrix of faults, which takes long
	@setup/as-root .venv/bin/python -m pytest -m faults

bench: setup-cluster image ## measure what things cost: a table, and var/bench.json
	@setup/as-root .venv/bin/python setup/bench.py
	@setup/as-root .venv/bin/python -m tests.bench

lint: setup ## check style and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
