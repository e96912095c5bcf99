# The student: training, evaluation, sweeps, reports, and TensorBoard.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --upgrade pip hatchling \
    && python3 -m venv --without-pip /opt/student
WORKDIR /build
COPY docker/requirements.py pyproject.toml constraints.txt ./
# Where pip finds PyTorch without CUDA, which a student does not use; empty: PyPI's PyTorch
ARG TORCH_INDEX_URL=
RUN python3 requirements.py student export > needed.txt \
    && install="/opt/build/bin/pip --python /opt/student/bin/python install --no-cache-dir --no-compile --constraint constraints.txt" \
    && if [ -n "${TORCH_INDEX_URL}" ]; then $install --no-deps --index-url "${TORCH_INDEX_URL}" torch; fi \
    && $install --requirement needed.txt

FROM dependencies AS code
COPY README.md LICENSE ./
COPY gridworld gridworld
COPY prompts prompts
COPY student student
COPY teacher_api teacher_api
COPY teacher_server teacher_server
COPY teacher_tools teacher_tools
COPY worlds worlds
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels . \
    && /opt/build/bin/pip --python /opt/student/bin/python install --no-cache-dir --no-deps \
        --target /opt/lvlm2p wheels/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --uid 2000 --gid 0 --no-create-home --home-dir /tmp student \
    && install -d -o 2000 -g 0 /runs
COPY --from=dependencies /opt/student /opt/student
COPY --from=code /opt/lvlm2p /opt/lvlm2p
ENV PATH=/opt/lvlm2p/bin:/opt/student/bin:${PATH} \
    PYTHONPATH=/opt/lvlm2p \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /runs
USER 2000:0
LABEL org.opencontainers.image.title="lvlm2p student" \
    org.opencontainers.image.description="Trains small agents with reinforcement learning and a teacher's advice" \
    org.opencontainers.image.licenses="MIT"
ENTRYPOINT ["student"]
CMD ["--help"]
