"""Whole folders of pictures to a table of classes: a Parquet dataset in parts, each there whole or not at all.

The sorted listing of the pictures is cut into fixed slices, and each slice becomes one file. A file that is there is
done, so a job that was killed goes on with the others, here or on a cluster, and no picture is lost or there twice.
"""

from sepvit_deploy.batch_predict.classifying import Classifying
from sepvit_deploy.batch_predict.cluster import Cluster, Model
from sepvit_deploy.batch_predict.job import Identity, Job, Progress, opened
from sepvit_deploy.batch_predict.local import run_here
from sepvit_deploy.batch_predict.parts import MOST_IMAGES
from sepvit_deploy.batch_predict.ray_data import run_on_ray

__all__ = [
    "MOST_IMAGES",
    "Classifying",
    "Cluster",
    "Identity",
    "Job",
    "Model",
    "Progress",
    "opened",
    "run_here",
    "run_on_ray",
]
