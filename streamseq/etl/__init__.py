"""ETL: sources of raw data and the Dask job that writes them into a store."""
