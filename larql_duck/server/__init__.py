"""A server of vindexes over HTTP: `larql-duck serve`. Needs the extra [server]; nothing else imports it."""
