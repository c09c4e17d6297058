# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
# The caches live outside the image: a rebuild compiles what changed, and the binary is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin portway && cp target/release/portway /portway

FROM debian:bookworm-slim
# Upstreams over https are checked against the system's certificates.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/portway --create-home portway
COPY --from=build /portway /usr/local/bin/portway
USER portway
WORKDIR /var/lib/portway
ENV LOG_FORMAT=json
EXPOSE 8080
# Bash opens the socket itself, so that the image needs no HTTP client. With TLS_CERT_FILE set, replace it.
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/bin/bash", "-c", \
    "exec 3<>\"/dev/tcp/127.0.0.1/${PORT:-8080}\" && printf 'GET /health/ready HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && IFS= read -r status <&3 && [[ $status == *' 200 '* ]]"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["portway"]
CMD ["serve"]
