"""What a cluster is told: manifests for KServe's Triton runtime, and a configuration for Ray Serve.

`asked` is what they are made of; `kserve`, `monitoring` and `dockerfile` write the one, `ray` the other; `typed` judges
manifests by the classes of the kserve and kubernetes packages, of which `kserve_classes` loads the first; `folder` puts
files into a folder that is for them alone.
"""
