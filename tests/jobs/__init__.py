"""The scheduler and the file of a job."""
