"""Speaking to PostgreSQL: engines, drivers, pools, replicas, COPY, and errors turned into ours."""
