"""The ingress: it answers HTTP and Ray handles, and calls the other deployments."""
