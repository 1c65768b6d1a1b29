"""The EC2 Query protocol: requests to parameters, results to XML, signatures; no HTTP, no store."""
