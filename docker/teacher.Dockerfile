# The teacher. compose.cpu.yml builds it on a Python image instead of vLLM's, with EXTRA=onnx.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE} AS code
RUN python3 -m pip install --no-cache-dir hatchling
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY gridworld gridworld
COPY prompts prompts
COPY student student
COPY teacher_api teacher_api
COPY teacher_server teacher_server
COPY teacher_tools teacher_tools
COPY worlds worlds
RUN python3 -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels . \
    && python3 -m pip install --no-cache-dir --no-deps --target /opt/lvlm2p wheels/*.whl

FROM ${VLLM_IMAGE} AS sqlite
COPY docker/sqlite3.sh .
RUN sh sqlite3.sh /opt/sqlite

FROM ${VLLM_IMAGE}
# teacher or onnx: the extra of pyproject.toml that is installed beside what the image has
ARG EXTRA=teacher
# Where pip finds PyTorch without CUDA; empty: the image has PyTorch, or PyPI's is to be installed
ARG TORCH_INDEX_URL=
WORKDIR /tmp/requirements
COPY docker/requirements.py pyproject.toml constraints.txt ./
RUN python3 requirements.py --constraints > here.txt \
    && python3 requirements.py ${EXTRA} postgres > needed.txt \
    && if python3 -c "import vllm" 2> /dev/null; then echo "qwen-vl-utils" >> needed.txt; fi \
    && install="python3 -m pip install --no-cache-dir --constraint here.txt" \
    && if [ -n "${TORCH_INDEX_URL}" ]; then $install --no-deps --index-url "${TORCH_INDEX_URL}" torch; fi \
    && $install --requirement needed.txt \
    # xgrammar brings it for GPUs alone: 0.7 GB
    && if [ -n "${TORCH_INDEX_URL}" ]; then python3 -m pip uninstall --yes triton; fi \
    && rm -rf /tmp/requirements
# vLLM's image is made for users of group 0
RUN getent passwd 2000 || useradd --uid 2000 --gid 0 --no-create-home --home-dir /tmp teacher; \
    install -d -o 2000 -g 0 /var/lib/teacher /var/cache/teacher
COPY --from=code /opt/lvlm2p /opt/lvlm2p
# teacher answers recover
COPY --from=sqlite /opt/sqlite/sqlite3 /usr/local/bin/
ENV PATH=/opt/lvlm2p/bin:${PATH} \
    PYTHONPATH=/opt/lvlm2p \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/var/cache/teacher \
    VLLM_CACHE_ROOT=/var/cache/teacher/vllm \
    TRITON_CACHE_DIR=/var/cache/teacher/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/teacher/inductor \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    TEACHER_HOST=0.0.0.0 \
    TEACHER_PORT=8000 \
    TEACHER_STORE=/var/lib/teacher/answers.sqlite3
WORKDIR /var/lib/teacher
USER 2000:0
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --retries=3 --start-period=15m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
LABEL org.opencontainers.image.title="lvlm2p teacher" \
    org.opencontainers.image.description="Asks a local vision-language model what it would do in a grid world, over HTTP" \
    org.opencontainers.image.licenses="MIT"
ENTRYPOINT ["teacher"]
CMD ["serve"]
