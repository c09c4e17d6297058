# Shortcuts; nothing here is needed. `just` without a name lists them.

_default:
    @just --list

# The whole suite, or the tests whose name holds the given words
test *names:
    ./test {{names}}

# What continuous integration runs
ci:
    .ci/run

# Formatting and lints, with what can be mended mended
fix:
    cargo fmt
    cargo clippy --all-targets --fix --allow-dirty --allow-staged

# A sample origin and a gateway in front of it
demo:
    cargo run --release -- demo

# The documentation of the crate
doc:
    RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --open

# Licences, advisories and sources of the dependencies
deny:
    cargo deny check

# The container image
image:
    docker build --tag portway .
