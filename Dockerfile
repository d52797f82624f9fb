# syntax=docker/dockerfile:1
# Two stages: one that installs what is pinned, and one that has only what runs.

FROM python:3.13-slim AS build
WORKDIR /app
RUN python -m venv /app/.venv
COPY requirements.image.lock ./
RUN /app/.venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.image.lock
COPY pyproject.toml README.md schema.sql ./
COPY src ./src
# Compiled here: what runs may not write there, and would compile all of it at every start.
RUN /app/.venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
 && /app/.venv/bin/python -m compileall -q src

FROM python:3.13-slim
RUN useradd --uid 10001 --home-dir /app --shell /usr/sbin/nologin tickets \
 && mkdir -p /var/lib/tickets/uploads \
 && chown -R tickets:tickets /var/lib/tickets
WORKDIR /app
COPY --from=build /app /app
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATA_DIR=/var/lib/tickets \
    UPLOAD_DIR=/var/lib/tickets/uploads \
    SERVICE_HOST=0.0.0.0 \
    SERVICE_PORT=8002
USER tickets
VOLUME /var/lib/tickets
EXPOSE 8002
# Alive is not enough: a container that cannot reach its database should get no requests.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"SERVICE_PORT\"]}/ready', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tickets"]
CMD ["serve"]
