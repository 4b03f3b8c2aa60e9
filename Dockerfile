# The server of tools/serve.py, and all other scripts, in an image.
#
#   docker build --tag iddm .
#   docker run --publish 8000:8000 --env SERVE_TOKEN=... --user "$(id -u):$(id -g)" \
#       --read-only --tmpfs /tmp --shm-size 2g --stop-timeout 120 \
#       --volume "$PWD/datasets:/app/datasets" --volume "$PWD/results:/app/results" \
#       --volume "$PWD/weights:/app/weights" iddm
#
# docs/deploying.md says what runs it besides Docker, and what needs which rights.

# Any image with Python 3.10 to 3.13 and pip. PyTorch brings its own CUDA libraries.
ARG BASE=python:3.12-slim
FROM ${BASE}

# The address of a package index to take PyTorch from, such as PyTorch's index for CPUs (a much
# smaller image) or for another version of CUDA. Not set: the version for CUDA that pip finds.
ARG TORCH_INDEX=

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache

WORKDIR /app

# Requirements first: this layer takes minutes, and a change of the code does not rebuild it.
COPY requirements.txt requirements-serve.txt ./
RUN if [ -n "${TORCH_INDEX}" ]; then \
        grep '^torch' requirements.txt > torch.txt \
        && python -m pip install --index-url "${TORCH_INDEX}" --requirement torch.txt \
        && rm torch.txt; \
    fi \
    && python -m pip install --requirement requirements-serve.txt

COPY . .

# A user without a name, by number, so that Kubernetes can see that it is not root. The image runs
# as any other user too (--user). All that it writes is in results and /tmp.
ARG USER_ID=10001
RUN mkdir -p datasets results weights \
    && chown -R "${USER_ID}:${USER_ID}" datasets results weights
USER ${USER_ID}:${USER_ID}
VOLUME ["/app/datasets", "/app/results", "/app/weights"]

EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "deploy/healthcheck.py"]
STOPSIGNAL SIGTERM

# The server takes the token that clients need from the environment variable SERVE_TOKEN. What
# follows the image's name are further options of tools/serve.py. Another script:
#   docker run --entrypoint python ... iddm tools/train.py --run_name flowers
ENTRYPOINT ["python", "deploy/entrypoint.py", "--host", "0.0.0.0", "--weights", "weight", "weights", "results"]
CMD []
