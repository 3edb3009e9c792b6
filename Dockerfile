# docker build -t nexus-rpc-gateway .
# docker run -p 8080:8080 -v nexus-data:/data -e NEXUS_GATEWAY_ALLOW_UNAUTHENTICATED=true nexus-rpc-gateway
#
# Serves the example. For services of your own: FROM this image, install them, and set CMD to
# ["serve", "your_module:services"].

FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-build.lock \
 && python -m venv /opt/gateway && /opt/gateway/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist . \
 && /opt/gateway/bin/pip install --no-cache-dir --no-deps /dist/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /data --no-create-home gateway \
 && install --directory --owner=gateway --group=gateway /data
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NEXUS_GATEWAY_HOST=0.0.0.0 \
    NEXUS_GATEWAY_PORT=8080 \
    NEXUS_GATEWAY_DATABASE=sqlite:////data/nexus.db \
    NEXUS_GATEWAY_LOG_FORMAT=json
WORKDIR /data
VOLUME /data
USER gateway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"NEXUS_GATEWAY_PORT\"]}/healthz', timeout=2)"]
ENTRYPOINT ["nexus-gateway"]
CMD ["serve", "examples.orders:services"]
