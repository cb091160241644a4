"""The screen in theatre: an ordinary MQTT subscriber that serves one web page. Knows no ledger and no pixels."""
