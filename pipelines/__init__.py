"""One ETL job per kind of source, found by the command line through the entry points `streamseq.pipelines`."""
