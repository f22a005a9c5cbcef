//! Where traces go: the ledger's variables, OpenTelemetry's, and ours.

use super::*;

fn traces(file: &str, environment: &[(&str, &str)]) -> Traces {
    complete(file, environment).unwrap().traces.expect("traces are on")
}

fn sent_to(environment: &[(&str, &str)]) -> (OtlpProtocol, String) {
    let traces = traces("[telemetry]\nenabled = true", environment);
    (traces.protocol, traces.endpoint.into())
}

/// What is noted about traces.
fn notes(config: &Config) -> Vec<String> {
    let about =
        config.notes.iter().filter(|note| note.key.starts_with("OTEL_") || note.key.starts_with("telemetry"));
    about.map(ToString::to_string).collect()
}

#[test]
fn traces_are_off_until_somebody_wants_them() {
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
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "\"grpc\""),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "\"grpc\""),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2-sesame", "\"***\""),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=hunter2-sesame", "\"***\""),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500", "\"2s 500ms\""),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500", "\"2s 500ms\""),
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
    assert_eq!(traces.service_name, "sync");
    let headers: Vec<_> =
        traces.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    assert_eq!(headers, [("authorization", "Basic hunter2-sesame"), ("x-scope", "a")]);
    let attributes = [("deployment.environment.name", "prod"), ("team", "a,b")];
    assert_eq!(traces.attributes, attributes.map(|(key, value)| (key.to_owned(), value.to_owned())));
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
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
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
