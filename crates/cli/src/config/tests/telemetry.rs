//! Where traces go: the ledger's variables, OpenTelemetry's, and ours.

use super::*;

fn traces(file: &str, environment: &[(&str, &str)]) -> Traces {
    complete(file, environment).unwrap().traces.expect("traces are on")
}

fn sent_to(environment: &[(&str, &str)]) -> (OtlpProtocol, String) {
    let traces = traces("[telemetry]\nenabled = true", environment);
    (traces.otlp.protocol, traces.otlp.endpoint.into())
}

/// What is noted about traces.
fn notes(config: &Config) -> Vec<String> {
    let about =
        config.notes.iter().filter(|note| note.key.starts_with("OTEL_") || note.key.starts_with("telemetry"));
    about.map(ToString::to_string).collect()
}

#[test]
fn traces_are_off_by_default() {
    let on = |file: &str, environment: &[(&str, &str)]| complete(file, environment).unwrap().traces.is_some();
    assert!(!on("", &[]));
    assert!(on("", &[("ENABLE_TELEMETRY", "true")]));
    assert!(on("[telemetry]\nenabled = true", &[]));
    // An endpoint alone says so too, but the ledger's switch says more, and the standard ones the most.
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318");
    assert!(on("", &[endpoint]));
    assert!(on("", &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://otel:4318/v1/traces")]));
    assert!(!on("", &[endpoint, ("ENABLE_TELEMETRY", "false")]));
    assert!(!on("", &[endpoint, ("ENABLE_TELEMETRY", "true"), ("OTEL_SDK_DISABLED", "true")]));
    assert!(!on("", &[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
    assert!(!on("[telemetry]\ntraces = false", &[endpoint]));
    assert!(!on("", &[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://otel:4318/v1/metrics")]));
    assert!(on("", &[endpoint, ("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp")]));
    assert!(!on("[telemetry]\nenabled = false", &[endpoint, ("ENABLE_TELEMETRY", "true")]));
}

#[test]
fn the_endpoint_says_which_protocol_unless_that_is_chosen() {
    use OtlpProtocol::{Grpc, HttpProtobuf};
    let endpoint = |text| ("OTEL_EXPORTER_OTLP_ENDPOINT", text);
    let exact = |text| ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", text);
    let protocol = |text| ("OTEL_EXPORTER_OTLP_PROTOCOL", text);
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Variables<'_>, OtlpProtocol, &str); 9] = [
        (&[], HttpProtobuf, "http://localhost:4318/v1/traces"),
        (&[endpoint("lgtm:4317")], Grpc, "http://lgtm:4317/"),
        (&[endpoint("http://lgtm:4317")], Grpc, "http://lgtm:4317/"),
        (&[endpoint("https://otel.internal/base/")], HttpProtobuf, "https://otel.internal/base/v1/traces"),
        (&[endpoint("http://a:1"), exact("http://b:2/x")], HttpProtobuf, "http://b:2/x"),
        (&[exact("http://b:2")], HttpProtobuf, "http://b:2/"),
        (&[endpoint("http://a:4318"), protocol("grpc")], Grpc, "http://a:4318/"),
        (&[endpoint("a:4317"), protocol("HTTP/protobuf")], HttpProtobuf, "http://a:4317/v1/traces"),
        (
            &[
                endpoint("http://a:1"),
                protocol("grpc"),
                ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ],
            HttpProtobuf,
            "http://a:1/v1/traces",
        ),
    ];
    for (environment, expected, url) in cases {
        assert_eq!(sent_to(environment), (expected, url.to_owned()), "{environment:?}");
    }
}

#[test]
fn a_protocol_is_called_what_it_is_called_in_the_configuration() {
    for name in ["http/protobuf", "grpc"] {
        let (protocol, _) = sent_to(&[("BALANCE_SYNC__TELEMETRY__PROTOCOL", name)]);
        assert_eq!(protocol.name(), name);
    }
}

#[test]
fn every_standard_variable_sets_its_key() {
    let cases = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:2/x", "\"http://b:2/x\""),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://b:2/x", "\"http://b:2/x\""),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc", "\"grpc\""),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=hunter2-sesame", "\"***\""),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000", "\"5s\""),
        ("OTEL_METRICS_EXPORTER", "none", "false"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "\"grpc\""),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "\"grpc\""),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2-sesame", "\"***\""),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=hunter2-sesame", "\"***\""),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500", "\"2s 500ms\""),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500", "\"2s 500ms\""),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2500", "\"2s 500ms\""),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/otel/ca.pem", "\"/etc/otel/ca.pem\""),
        ("OTEL_SERVICE_NAME", "sync-eu", "\"sync-eu\""),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c=d%20e", "\"a=b,c=d%20e\""),
        ("OTEL_TRACES_SAMPLER", "always_off", "\"always_off\""),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25", "0.25"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100", "100"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50", "50"),
        ("OTEL_BSP_SCHEDULE_DELAY", "500", "\"500ms\""),
        ("OTEL_TRACES_EXPORTER", "none", "false"),
        ("OTEL_SDK_DISABLED", "true", "false"),
    ];
    let named: BTreeSet<_> = cases.iter().map(|(name, ..)| *name).collect();
    let known = otel_env::VARIABLES.iter().filter(|(_, key, _)| !key.is_empty());
    assert_eq!(named, known.map(|(name, ..)| *name).collect());
    for (name, value, expected) in cases {
        let config = complete("", &[(name, value)]).unwrap();
        let (_, key, _) = otel_env::VARIABLES.iter().find(|(known, ..)| *known == name).unwrap();
        assert_eq!(printed(&config, key), format!("{expected}  # standard variable {name}"));
        assert!(!print(&config).contains(SECRET) && !format!("{config:?}").contains(SECRET), "{name}");
        assert_eq!(notes(&config), Vec::<String>::new());
    }
}

#[test]
fn they_reach_the_typed_configuration() {
    let traces = traces(
        "[telemetry]\nexport_interval = \"1s\"",
        &[
            ("ENABLE_TELEMETRY", "true"),
            ("OTEL_RESOURCE_SERVICE_NAME", "ledger"),
            ("OTEL_SERVICE_NAME", "sync"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20hunter2-sesame, x-scope=a"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=a%2Cb"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "7"),
        ],
    );
    assert_eq!(traces.otlp.service_name, "sync");
    let headers: Vec<_> =
        traces.otlp.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    assert_eq!(headers, [("authorization", "Basic hunter2-sesame"), ("x-scope", "a")]);
    let attributes = [("deployment.environment.name", "prod"), ("team", "a,b")];
    assert_eq!(traces.otlp.attributes, attributes.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!((traces.sampler, traces.sample_ratio), (Sampler::TraceIdRatio, 0.1));
    // The default batch follows a shorter queue; the file goes before the variable.
    assert_eq!((traces.queue_size, traces.batch_size), (100, 100));
    assert_eq!(traces.export_interval, Duration::from_secs(1));
    assert!(!format!("{traces:?}").contains(SECRET));
}

#[test]
fn a_standard_variable_that_cannot_be_read_is_left_out_with_a_note() {
    for (name, bad) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1m"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "/etc/otel/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/etc/otel/key.pem"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "5000"),
    ] {
        let config = complete("[telemetry]\nenabled = true", &[(name, bad)]).unwrap();
        let notes = notes(&config);
        let [note] = notes.as_slice() else { panic!("{name}: {notes:?}") };
        assert!(note.starts_with(name) && note.contains(bad) && note.contains("allowed: "), "{note}");
    }
    // What can be read and is out of range is brought into it, as the ledger's numbers are.
    let config = complete("", &[("OTEL_BSP_MAX_QUEUE_SIZE", "3")]).unwrap();
    assert!(config.notes.iter().any(|note| note.text.contains("clamped to 16")), "{:?}", config.notes);
}

#[test]
fn what_is_ours_is_refused_when_it_is_wrong() {
    let refused = |line: &str| problem(&format!("[telemetry]\nenabled = true\n{line}"), &[]);
    for bad in ["otel", "ftp://otel:1", "http://", "http://otel/?a=b", "otel:4317/x", "http://otel/#a"] {
        let text = refused(&format!("endpoint = \"{bad}\""));
        assert!(text.starts_with("telemetry.endpoint = ") && text.contains("allowed: http://"), "{text}");
    }
    let text = refused(&format!("traces_endpoint = \"http://u:{SECRET}@otel:1\""));
    assert!(text.contains("telemetry.headers"), "{text}");
    let text = refused(&format!("headers = \"{SECRET}\""));
    assert!(text.starts_with("telemetry.headers ") && text.contains("name=value"), "{text}");
    assert!(refused("resource_attributes = \"a\"").contains("key=value"));
    assert!(refused("service_name = \"\"").starts_with("telemetry.service_name"));
    assert!(refused("sampler = \"sometimes\"").contains("parentbased_traceidratio"));
    assert!(refused("protocol = \"http/json\"").contains("\"grpc\""));
    let text = refused("batch_size = 5000");
    assert!(text.contains("at most 2048") && text.contains("telemetry.queue_size"), "{text}");
    // It isn't read while traces are off.
    complete("[telemetry]\nendpoint = \"otel\"", &[]).unwrap();
}

#[test]
fn metrics_are_pushed_where_telemetry_is_on_and_have_keys_of_their_own() {
    let metrics = |file: &str, environment: &[(&str, &str)]| complete(file, environment).unwrap().metrics;
    let to = |file: &str, environment: &[(&str, &str)]| {
        let metrics = metrics(file, environment).expect("metrics are on");
        (metrics.otlp.protocol, metrics.otlp.endpoint.to_string())
    };
    assert!(metrics("", &[]).is_none());
    let lgtm = [("ENABLE_TELEMETRY", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "lgtm:4317")];
    assert_eq!(to("", &lgtm), (OtlpProtocol::Grpc, "http://lgtm:4317/".to_owned()));
    assert!(metrics("[telemetry]\nmetrics = false", &lgtm).is_none());
    assert!(metrics("", &[lgtm[0], lgtm[1], ("OTEL_METRICS_EXPORTER", "none")]).is_none());
    assert!(metrics("", &[("ENABLE_TELEMETRY", "false"), lgtm[1]]).is_none());
    let http = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318");
    assert_eq!(to("", &[http]), (OtlpProtocol::HttpProtobuf, "http://a:4318/v1/metrics".to_owned()));
    // A place for the other signal alone is none for this one.
    let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/x");
    assert!(metrics("", &[traces]).is_none());
    assert_eq!(to("", &[traces, http]).1, "http://a:4318/v1/metrics");
    let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:2/y");
    assert_eq!(to("", &[traces, http, own]).1, "http://m:2/y");
    // What is meant for traces goes to no other receiver.
    let headers = |environment: &[(&str, &str)]| {
        let metrics = metrics("", environment).unwrap();
        metrics
            .otlp
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", value.expose_secret()))
            .collect::<String>()
    };
    let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "k=traces");
    let general = ("OTEL_EXPORTER_OTLP_HEADERS", "k=general");
    assert_eq!(headers(&[http, of_traces]), "");
    assert_eq!(headers(&[http, of_traces, general]), "k=general");
    assert_eq!(headers(&[http, general, ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "k=own")]), "k=own");
    // So are timeouts; without one of its own a signal has that of both.
    let timeouts = |environment: &[(&str, &str)]| {
        let config = complete("", environment).unwrap();
        (config.traces.unwrap().otlp.timeout, config.metrics.unwrap().otlp.timeout)
    };
    let secs = Duration::from_secs;
    assert_eq!(timeouts(&[http]), (secs(10), secs(10)));
    let both = ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000");
    assert_eq!(timeouts(&[http, both]), (secs(3), secs(3)));
    assert_eq!(timeouts(&[http, both, ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1000")]), (secs(1), secs(3)));
    assert_eq!(timeouts(&[http, both, ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "1000")]), (secs(3), secs(1)));
    let protocol = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
    assert_eq!(to("", &[http, protocol]).0, OtlpProtocol::HttpProtobuf);

    let ledgers = |file: &str| metrics(&format!("[telemetry]\nenabled = true\n{file}"), &[]).unwrap().ledgers;
    assert_eq!(ledgers(""), Some(16));
    assert_eq!(ledgers("metrics_ledgers = 3"), Some(3));
    assert_eq!(ledgers("ledger_series = \"page\""), None);
    let refused = |line: &str| problem(&format!("[telemetry]\n{line}"), &[]);
    let text = refused("metrics_interval = \"500ms\"");
    assert!(text.starts_with("telemetry.metrics_interval = 500ms") && text.contains("1s to 1h"), "{text}");
    assert!(refused("metrics_ledgers = 65").contains("0 to 64"));
    assert!(refused("ledger_series = \"both\"").contains("page"));
    let text = problem("[telemetry]\nenabled = true\nmetrics_endpoint = \"otel\"", &[]);
    assert!(text.starts_with("telemetry.metrics_endpoint = ") && text.contains("allowed: http://"), "{text}");
    let text = problem(&format!("[telemetry]\nenabled = true\nmetrics_headers = \"{SECRET}\""), &[]);
    assert!(text.starts_with("telemetry.metrics_headers ") && !text.contains(SECRET), "{text}");
}

#[test]
fn an_authority_that_cannot_be_read_is_refused_or_noted_and_none_takes_its_place() {
    let https = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel:4318");
    let text = problem("[telemetry]\nenabled = true\nca_cert = \"/nowhere/ca.pem\"", &[]);
    assert!(
        text.starts_with("telemetry.ca_cert = ") && text.contains("allowed: a readable PEM file"),
        "{text}"
    );
    let config = complete("", &[https, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]).unwrap();
    let file = Some(std::path::PathBuf::from("/nowhere/ca.pem"));
    assert_eq!(config.traces.as_ref().unwrap().otlp.ca_cert, file);
    assert_eq!(config.metrics.as_ref().unwrap().otlp.ca_cert, file);
    let notes = notes(&config);
    let [note] = notes.as_slice() else { panic!("{notes:?}") };
    assert!(note.contains("telemetry.ca_cert") && note.contains("nothing is sent by TLS"), "{note}");
    // It isn't read while nothing is sent.
    complete("[telemetry]\nca_cert = \"/nowhere/ca.pem\"", &[]).unwrap();
}
