# The command line of this project. Not built where it was written: no container engine was available there.
#   docker build -t facecoresetnet .                                            (CPU)
#   docker build -t facecoresetnet --build-arg TORCH_WHEELS=cu128 .             (NVIDIA GPU)
#   docker run --rm -v "$PWD/photos:/photos" facecoresetnet inference.py --weights WEIGHTS --images_root /photos
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim
# A folder of the PyTorch wheel index: cpu, cu126, cu128, ...
ARG TORCH_WHEELS=cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.txt ./
# The pair of torch and torchvision is resolved by pip, as in the Makefile.
# hadolint ignore=DL3013
RUN pip install torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH_WHEELS}" \
    && pip install -r requirements.txt
COPY . .
RUN useradd --create-home --uid 1000 user && chown 1000 /app
USER 1000
ENTRYPOINT ["python"]
CMD ["inference.py", "--help"]
