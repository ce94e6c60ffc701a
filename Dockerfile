# One image for workers and the read service. Third-party packages are installed first, because they change less often
# than our code.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python3 -m venv /app
COPY producer/pyproject.toml producer/
COPY worker/pyproject.toml worker/
RUN /app/bin/python3 -c 'import tomllib; print(*(name for part in ("producer", "worker") for name in tomllib.load(open(f"{part}/pyproject.toml", "rb"))["project"]["dependencies"] if not name.startswith("tallystream")), sep="\n")' > requirements.txt \
 && /app/bin/pip install --no-cache-dir --disable-pip-version-check hatchling -r requirements.txt
COPY producer producer
COPY worker worker
RUN /app/bin/pip install --no-cache-dir --disable-pip-version-check --no-build-isolation --no-deps ./producer ./worker

FROM python:3.13-slim
COPY --from=build /app /app
COPY config/tallystream.toml /etc/tallystream/tallystream.toml
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /etc/tallystream
ENTRYPOINT ["tallystream"]
CMD ["--help"]
