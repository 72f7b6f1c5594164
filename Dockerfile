# Lung masks for chest films, by a user without rights. Without a command it is a module of mercure; see docs/how-to/watch.md.
FROM python:3.11-slim
WORKDIR /source
COPY constraints.txt setup.py setup.cfg pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE ./
COPY monai_diffeo monai_diffeo
COPY bundles bundles
RUN pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install --no-cache-dir -c constraints.txt ".[demo,dicom_output]" \
    && rm -rf /source/*
# mercure runs it as a user of its own, who has no home
ENV HOME=/tmp MPLCONFIGDIR=/tmp OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home films
USER 10001
WORKDIR /tmp
ENTRYPOINT ["monai-diffeo"]
CMD ["mercure"]
