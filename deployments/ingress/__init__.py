"""The ingress: HTTP and Ray handles in front of the other deployments."""
