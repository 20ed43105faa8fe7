//! What machines ask a node: metrics in the text format of Prometheus, and whether it is ready, at
//! `--metrics-listen`.

use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio::time::sleep;
use weft_model::DNS_PLUGIN;
use weft_proto::v1::{AgentStatus, PluginStatus, Traffic};
use weft_resolver::{Counters, Latency, code_name};

use crate::core::Core;
use crate::http::{self, Page};
use crate::service::AgentService;

/// Who names a problem with the address.
const WHO: &str = "metrics";
/// An address that somebody has is tried again this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Serves `GET /metrics` and `GET /readyz` if there is an address for it; never ends.
pub(crate) async fn run(core: Arc<Core>, service: Arc<AgentService>) {
    let Some(at) = core.config.metrics_listen else { return std::future::pending().await };
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => {
                core.set_problems(WHO, Vec::new());
                let service = Arc::clone(&service);
                http::serve(listener, move |path| answer(&service, path)).await;
            }
            Err(error) => {
                let problem = format!("metrics cannot be served at {at}: {error}");
                core.set_problems(WHO, vec![problem]);
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

fn answer(service: &AgentService, path: &str) -> Page {
    if path == "/readyz" {
        return readiness(&service.core.unready());
    }
    if path != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "see /metrics and /readyz\n".to_owned());
    }
    let counters = service.core.resolver().map(|resolver| resolver.counters());
    let text = text(&service.status(), counters);
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Ready, or a line for each reason why not.
fn readiness(reasons: &[&str]) -> Page {
    match reasons {
        [] => plain(StatusCode::OK, "ready\n".to_owned()),
        reasons => plain(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

fn plain(status: StatusCode, text: String) -> Page {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

/// Everything, by the name of the metric.
fn text(status: &AgentStatus, names: Option<&Counters>) -> String {
    let mut out = Exposition::default();
    out.gauge(
        "weft_hub_connected",
        "1 while the hub's stream is open.",
        u8::from(status.hub_connected),
    );
    let connected = u8::from(status.datapath_connected);
    out.gauge("weft_datapath_connected", "1 while there is a datapath.", connected);
    out.gauge("weft_generation", "Generation of the hub's snapshot.", status.generation);
    let updated = "When the hub last told something, in Unix seconds; 0 before it does.";
    out.gauge("weft_hub_update_timestamp_seconds", updated, status.updated_unix);
    out.gauge("weft_pods", "Pods that are attached to this node.", status.pods.len());
    out.gauge("weft_problems", "Lines that an operator should look at.", status.problems.len());
    let spoofed = "Packets with a source that was not the pod's, dropped at its port.";
    out.head("weft_spoofed_packets_total", spoofed, "counter");
    out.value("weft_spoofed_packets_total", &[], status.spoofed_at_ports);
    if let Some(datapath) = &status.datapath {
        out.gauge("weft_flows", "Flows that live.", datapath.flows);
        out.gauge("weft_flows_max", "Flows that there is room for.", datapath.flows_max);
        let dropped =
            datapath.drops.iter().map(|d| (vec![("reason", d.reason.clone())], d.packets));
        out.counters("weft_dropped_packets_total", "Packets that were dropped.", dropped);
        let ways = [
            ("tun_in", &datapath.tun_in),
            ("tun_out", &datapath.tun_out),
            ("mesh_in", &datapath.mesh_in),
            ("mesh_out", &datapath.mesh_out),
        ];
        let traffic = |of: fn(&Traffic) -> u64| {
            let one = move |(way, traffic): (&str, &Option<Traffic>)| {
                (vec![("way", way.to_owned())], traffic.as_ref().map_or(0, of))
            };
            ways.map(one)
        };
        let of_ways = "from and to the interface, and datagrams of the mesh.";
        out.counters("weft_packets_total", &format!("Packets {of_ways}"), traffic(|t| t.packets));
        out.counters("weft_bytes_total", &format!("Bytes {of_ways}"), traffic(|t| t.bytes));
        plugins(&mut out, &datapath.plugins);
    }
    let why = status.policy_drops.iter().map(|d| (vec![("why", d.why.clone())], d.packets));
    out.counters("weft_policy_dropped_packets_total", "Packets that policies dropped.", why);
    if let Some(names) = names {
        let queries = [
            ("cluster", &names.cluster),
            ("outside", &names.outside),
            ("failed", &names.failed),
            ("refused", &names.refused),
            ("stranger", &names.strangers),
        ];
        let queries = queries.map(|(result, count)| {
            (vec![("result", result.to_owned())], count.load(Ordering::Relaxed))
        });
        let help = "Queries that came to the node's resolver, by what became of them.";
        out.counters("weft_dns_resolver_queries_total", help, queries);
        out.head(
            "weft_dns_cache_hits_total",
            "Queries about other names than the cluster's that were answered from the cache.",
            "counter",
        );
        out.value("weft_dns_cache_hits_total", &[], names.cached.load(Ordering::Relaxed));
        let help = "How long queries about other names than the cluster's took.";
        out.histogram("weft_dns_outside_duration_seconds", help, &names.took);
    }
    out.text
}

fn plugins(out: &mut Exposition, plugins: &[PluginStatus]) {
    let counts = |of: fn(&PluginStatus) -> u64| {
        plugins.iter().map(move |p| (vec![("plugin", p.name.clone())], of(p)))
    };
    out.counters(
        "weft_plugin_calls_total",
        "Packets that a plugin was asked about.",
        counts(|p| p.calls),
    );
    out.counters("weft_plugin_faults_total", "Calls that failed.", counts(|p| p.faults));
    out.counters(
        "weft_plugin_dropped_total",
        "Packets that a plugin dropped.",
        counts(|p| p.drops),
    );
    let dns = plugins.iter().filter(|plugin| plugin.name == DNS_PLUGIN);
    let answers = dns.flat_map(|plugin| &plugin.replies_by_number);
    let answers = answers.map(|(number, count)| {
        (vec![("type", record_type(number >> 8)), ("code", code(number & 0xff))], *count)
    });
    let mut answers: Vec<_> = answers.collect();
    answers.sort();
    let help = "Queries for names of the cluster that were answered in the packets' way.";
    out.counters("weft_dns_answers_total", help, answers);
}

fn record_type(number: u32) -> String {
    match number {
        1 => "A".to_owned(),
        2 => "NS".to_owned(),
        5 => "CNAME".to_owned(),
        6 => "SOA".to_owned(),
        12 => "PTR".to_owned(),
        16 => "TXT".to_owned(),
        28 => "AAAA".to_owned(),
        33 => "SRV".to_owned(),
        0 => "other".to_owned(),
        other => format!("TYPE{other}"),
    }
}

fn code(number: u32) -> String {
    let name = u16::try_from(number).ok().and_then(code_name);
    name.map_or_else(|| number.to_string(), ToOwned::to_owned)
}

/// The text while it is written.
#[derive(Default)]
struct Exposition {
    text: String,
}

type Labels = Vec<(&'static str, String)>;

impl Exposition {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, String)], value: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &Latency) {
        self.head(name, help, "histogram");
        let (up_to, all) = latency.up_to();
        let bounds = Latency::BOUNDS.map(|ms| Duration::from_millis(ms).as_secs_f64().to_string());
        let bounds = bounds.into_iter().zip(up_to).chain([("+Inf".to_owned(), all)]);
        for (bound, count) in bounds {
            self.value(&format!("{name}_bucket"), &[("le", bound)], count);
        }
        self.value(&format!("{name}_sum"), &[], latency.sum().as_secs_f64());
        self.value(&format!("{name}_count"), &[], all);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help, "gauge");
        self.value(name, &[], value);
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        self.head(name, help, "counter");
        for (labels, value) in values {
            self.value(name, &labels, value);
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::DatapathStatus;

    use super::*;

    /// DNS-144.
    #[test]
    fn answers_are_told_by_type_and_code() {
        let plugin = PluginStatus {
            name: DNS_PLUGIN.into(),
            calls: 9,
            replies_by_number: [(1 << 8, 7), (28 << 8 | 3, 2)].into(),
            ..PluginStatus::default()
        };
        let datapath = DatapathStatus { plugins: vec![plugin], ..DatapathStatus::default() };
        let status = AgentStatus { datapath: Some(datapath), ..AgentStatus::default() };
        let counters = Counters::default();
        counters.outside.fetch_add(3, Ordering::Relaxed);
        let text = text(&status, Some(&counters));
        for line in [
            "weft_hub_connected 0",
            "weft_plugin_calls_total{plugin=\"dns\"} 9",
            "weft_dns_answers_total{type=\"A\",code=\"NOERROR\"} 7",
            "weft_dns_answers_total{type=\"AAAA\",code=\"NXDOMAIN\"} 2",
            "weft_dns_resolver_queries_total{result=\"outside\"} 3",
            "weft_dns_outside_duration_seconds_bucket{le=\"0.001\"} 0",
            "weft_dns_outside_duration_seconds_bucket{le=\"+Inf\"} 0",
            "weft_dns_outside_duration_seconds_count 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in\n{text}");
        }
        let names = text.lines().filter(|l| l.starts_with("# TYPE"));
        let names: Vec<_> = names.filter_map(|l| l.split(' ').nth(2)).collect();
        let mut once = names.clone();
        once.dedup();
        assert_eq!(names, once);
    }

    #[test]
    fn text_of_a_label_is_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
