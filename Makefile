# Everything there is to do with the source. Needs Go, make and git; tools are built from tools/ at pinned versions.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-builtin-rules --no-print-directory

MODULE      := github.com/neolith/orchestrator
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO          ?= go
TOOLS       := $(CURDIR)/.tools/bin
PROGRAMS    := $(notdir $(wildcard cmd/*))
SHIM        := agent/shim/embed/shim
# Without gRPC's traces, for which nobody has a page, the linker sees that nothing looks up methods by name, and leaves out those that nobody calls:
# a sixth of each program.
TAGS        := grpcnotrace
# What people wrote: generated code and what git does not know are not formatted.
GO_FILES     = $(shell git ls-files --cached --others --exclude-standard '*.go' ':!*.pb.go')
# The race detector needs a C compiler; a fresh machine may have none.
RACE        := $(shell command -v "$$($(GO) env CC | cut -d' ' -f1)" >/dev/null 2>&1 && echo -race)
# The whole of the tests takes a fraction of it; a test that hangs shows its goroutines before a build is given up.
TEST_TIMEOUT ?= 8m
# What the protocols must stay compatible with: the last release, or what is merged.
BREAKING_REF ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git merge-base HEAD origin/main 2>/dev/null || true)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1 \t/' | expand -t 16

.PHONY: build
build: shim ## build the programs into bin/, static
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -ldflags "-s -w -X $(MODULE)/telemetry.version=$(VERSION)" -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

# The shim is embedded into node-agent, so it comes first. It carries no version stamp: the same source gives the same
# bytes, and what embeds it is not compiled again for each commit.
.PHONY: shim
shim:
	@if [ -d agent/shim/cmd/shim ]; then \
		CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "-s -w" -o $(SHIM) ./agent/shim/cmd/shim; \
	fi

.PHONY: test
test: shim ## run all tests, with the race detector where there is a C compiler
	@[ -n "$(RACE)" ] || echo "NOTE: no C compiler found: the tests run without the race detector" >&2
	$(GO) test $(RACE) -timeout $(TEST_TIMEOUT) ./...

.PHONY: test-s3
test-s3: $(TOOLS)/versitygw ## test the bucket store against a gateway that is built first
	VERSITYGW=$(TOOLS)/versitygw $(GO) test -count=1 $(RACE) ./chunks/s3
	VERSITYGW=$(TOOLS)/versitygw $(GO) test -count=1 -run Bucket ./cmd/orchestrator ./test/e2e

.PHONY: test-postgres
test-postgres: ## test the recorder against a real PostgreSQL: the machine's, or Debian's unpacked into .tools
	env $$(tools/postgres.sh $(CURDIR)/.tools/postgres) $(GO) test -count=1 $(RACE) -timeout $(TEST_TIMEOUT) ./recorder/postgres

# Against a cluster of the programs, too. Nothing of npm runs on the machine but the compiler and the tests.
.PHONY: typescript-test
typescript-test: ## build and test the TypeScript client; needs Node 20 or later
	@if ! command -v npm >/dev/null || ! node -e 'process.exitCode = parseInt(process.versions.node) < 20 ? 1 : 0' 2>/dev/null; then \
		echo "SKIPPED typescript-test: it needs Node 20 or later, with npm"; \
	else \
		$(MAKE) build && cd clients/typescript && npm ci --ignore-scripts --no-audit --no-fund && npm test; \
	fi

# npm is asked for what package-lock.json names, and for nothing when that is there already.
.PHONY: mcp-test
mcp-test: build ## the gateway with the official clients of MCP, from npm, against a real cluster
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		$(MAKE) test/mcp/node_modules/.package-lock.json && \
		PROGRAMS=$(CURDIR)/bin $(GO) test -count=1 -timeout $(TEST_TIMEOUT) ./test/mcp; \
	else \
		echo "SKIPPED mcp-test: there is no node, or no npm, on this machine; install Node.js 20 or newer" >&2; \
	fi

test/mcp/node_modules/.package-lock.json: test/mcp/package.json test/mcp/package-lock.json
	npm ci --prefix test/mcp --no-audit --no-fund --loglevel=error
	@touch $@

# The chart is tested with the programs that it is for; the tests are a module of their own. What lies outside of a module is not
# looked at before an earlier result is taken, so none is taken.
.PHONY: chart-test
chart-test: build $(TOOLS)/kube-score ## lint, render and check the Helm chart, in all its variants
	cd deploy/helm/charttest && PROGRAMS=$(CURDIR)/bin KUBE_SCORE=$(TOOLS)/kube-score HELM_DOCS=$(TOOLS)/helm-docs $(GO) test -count=1 -timeout $(TEST_TIMEOUT) ./...

.PHONY: chart-docs
chart-docs: $(TOOLS)/kube-score ## write the README of the Helm chart
	$(TOOLS)/helm-docs --chart-search-root deploy/helm/orchestrator --sort-values-order file

.PHONY: check
check: check-format check-module vet lint check-proto ## everything that looks at the source without running it

.PHONY: check-format
check-format:
	@bad=$$(gofmt -l $(GO_FILES)); [ -z "$$bad" ] || { echo "not formatted (run make format):"; echo "$$bad"; exit 1; } >&2

.PHONY: check-module
check-module:
	@$(GO) mod tidy -diff || { echo "go.mod is not tidy; run go mod tidy" >&2; exit 1; }

.PHONY: vet
vet: shim
	$(GO) vet ./...

.PHONY: lint
lint: shim $(TOOLS)/golangci-lint
	$(TOOLS)/golangci-lint run ./...

.PHONY: check-proto
check-proto: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## lint the protocols, compare them with the last release, and the generated code with them
	$(TOOLS)/buf lint
	@tools/check-generated.sh $(TOOLS)
	@tools/check-breaking.sh $(TOOLS) $(BREAKING_REF)

.PHONY: format
format: ## format the Go source
	gofmt -w $(GO_FILES)

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## generate Go code from the protocols
	PATH="$(TOOLS):$$PATH" $(TOOLS)/buf generate

.PHONY: demo
demo: build ## run the main job for real: 3 servers, 3 nodes, 30 sessions, kills; prints what was measured
	@CGO_ENABLED=0 $(GO) build -o bin/demo ./test/demo
	@bin/demo $(ARGS)

.PHONY: bench
bench: build ## measure, against the raw limits of this machine; ARGS="send --quick", see bench/cmd/bench
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/bench ./bench/cmd/bench
	bin/bench $(or $(ARGS),all)

.PHONY: bench-peers
bench-peers: ## build what `bench queue` measures beside: NATS in a program; RabbitMQ is Debian's package, if it is installed
	CGO_ENABLED=0 $(GO) build -C bench/peers -trimpath -o bin/peers .

# Tags of images have no plus sign, and no slash.
IMAGE_TAG   ?= $(subst /,-,$(subst +,-,$(VERSION)))
IMAGES      := dist/images

.PHONY: images
images: dist/ca-certificates.pem ## build the container images into dist/images, for amd64 and arm64; needs no Docker
	$(GO) run ./deploy/images -roots $< -out $(IMAGES) -version $(IMAGE_TAG) -revision $(shell git rev-parse HEAD) \
		-created $(shell git log -1 --format=%cI) $(ARGS)

.PHONY: image-test
image-test: images ## run the programs of the images from what is unpacked of them, with nothing else around
	IMAGES=$(CURDIR)/$(IMAGES) $(GO) test -count=1 -run TestProgramsRun -v ./deploy/images

KUBERNETES_TOOLS ?= $(CURDIR)/.tools/kubernetes

.PHONY: kubernetes-test
kubernetes-test: shim ## the chart on a real Kubernetes that is brought up for it (root; the first time takes six minutes more); ARGS="-events …"
	@mkdir -p dist
	@if [ -n "$(CI)" ] && [ "$(KUBERNETES_TEST)" != 1 ] && [ ! -x $(KUBERNETES_TOOLS)/bin/kubeall ]; then \
		echo "SKIPPED kubernetes-test: its tools are not built ($(KUBERNETES_TOOLS)); KUBERNETES_TEST=1 builds them"; \
	else \
		$(GO) build -o dist/kubernetes-test ./test/kubernetes && KUBERNETES_TOOLS=$(KUBERNETES_TOOLS) dist/kubernetes-test -report dist/kubernetes-test.md $(ARGS); \
	fi

dist/ca-certificates.pem: tools/roots/go.mod tools/roots/main.go
	@mkdir -p $(@D)
	$(GO) run -C tools/roots . > $@.new
	@mv $@.new $@

.PHONY: tools
tools: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/golangci-lint ## build the tools into .tools/bin

# A tool is built again only when its versions changed.
$(TOOLS)/buf: tools/buf/go.mod tools/buf/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C tools/buf -o $(TOOLS)/ tool

$(TOOLS)/protoc-gen-go: tools/protoc/go.mod tools/protoc/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C tools/protoc -o $(TOOLS)/ tool
	@touch $@

$(TOOLS)/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C tools/lint -o $(TOOLS)/ tool

# What chunks/s3 is tested against.
$(TOOLS)/versitygw: tools/versitygw/go.mod tools/versitygw/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C tools/versitygw -o $(TOOLS)/ tool
	@touch $@

# Beside kube-score, helm-docs.
$(TOOLS)/kube-score: tools/chart/go.mod tools/chart/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C tools/chart -o $(TOOLS)/ tool
	@touch $@

.PHONY: clean
clean: ## remove what was built, and what npm brought, but for the tools
	rm -rf bin dist $(SHIM) coverage.out bench/peers/bin test/mcp/node_modules clients/typescript/dist clients/typescript/node_modules
