//! The server with sockets on loopback, and other servers that say what a test wants.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use weft_dns::Transport;
use weft_model::Upstream;
use weft_policy_sdk::Config;
use weft_proto::tables::v1::{DnsNamespace, DnsService, DnsSettings, DnsTables};

use super::*;

mod witness;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(20);

/// What another server says to a query; `None`: nothing.
type Say = dyn Fn(&Message, Transport) -> Option<Message> + Send + Sync;

struct Server {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
}

/// A server on loopback, over both transports at one port.
async fn server(
    say: impl Fn(&Message, Transport) -> Option<Message> + Send + Sync + 'static,
) -> Server {
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind((LOCAL, 0)).await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = tcp.local_addr().unwrap();
    let (say, asked): (Arc<Say>, _) = (Arc::new(say), Arc::new(AtomicU64::new(0)));
    let (say_tcp, asked_udp) = (Arc::clone(&say), Arc::clone(&asked));
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            asked_udp.fetch_add(1, Ordering::Relaxed);
            let query = Message::from_vec(&buffer[..length]).unwrap();
            if let Some(reply) = say(&query, Transport::Udp) {
                udp.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let say = Arc::clone(&say_tcp);
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut message = vec![0; usize::from(length)];
                    stream.read_exact(&mut message).await.unwrap();
                    let query = Message::from_vec(&message).unwrap();
                    let Some(reply) = say(&query, Transport::Tcp) else { continue };
                    let reply = reply.to_vec().unwrap();
                    stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            });
        }
    });
    Server { address, asked }
}

fn reply_to(query: &Message, code: ResponseCode, answers: Vec<Record>) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(query.queries.iter().cloned());
    reply.add_answers(answers);
    reply
}

fn address(name: &Name, ttl: u32, last: u8) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
}

/// One that knows an address of every name.
async fn knowing(last: u8) -> Server {
    server(move |query, _| {
        let answers = vec![address(query.queries[0].name(), 300, last)];
        Some(reply_to(query, ResponseCode::NoError, answers))
    })
    .await
}

fn tables() -> DnsTables {
    DnsTables {
        settings: Some(DnsSettings {
            zones: vec!["cluster.local".into()],
            ttl_s: 5,
            synced: true,
            ..DnsSettings::default()
        }),
        services: vec![
            DnsService {
                name: "default/web".into(),
                cluster_ips: vec![vec![10, 96, 0, 20]],
                ..DnsService::default()
            },
            DnsService {
                name: "default/ext".into(),
                external_name: "db.example.com".into(),
                ..DnsService::default()
            },
        ],
        ..DnsTables::default()
    }
}

/// Servers that are asked in clear.
fn clear(addresses: &[SocketAddr]) -> Vec<Upstream> {
    addresses.iter().map(|a| Upstream { address: *a, tls: None }).collect()
}

fn upstreams(usual: &[SocketAddr], stubs: &StubDomains) -> Upstreams {
    Upstreams::new(&clear(usual), stubs, RootCertStore::empty()).unwrap()
}

fn resolver(usual: &[SocketAddr], stubs: &StubDomains) -> Arc<Resolver> {
    let resolver = Resolver::new(|client| client == LOCAL);
    resolver.configure(Config::Full(&tables().encode_to_vec())).unwrap();
    resolver.set_upstreams(upstreams(usual, stubs));
    resolver
}

fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    message
}

async fn ask(resolver: &Resolver, query: &Message, transport: Transport) -> Message {
    let query_bytes = query.to_vec().unwrap();
    let answer = resolver.answer(&query_bytes, transport, LOCAL);
    let reply = timeout(SOON, answer).await.unwrap().unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!((reply.metadata.id, &reply.queries), (77, &query.queries));
    reply
}

async fn found(resolver: &Resolver, name: &str) -> (ResponseCode, Vec<String>) {
    let reply = ask(resolver, &query(name, RecordType::A), Transport::Udp).await;
    let answers = reply.answers.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    (reply.metadata.response_code, answers)
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// DNS-051, DNS-100, DNS-130: the cluster's own names here, others by asking; letters as they were.
#[test]
fn names_of_the_cluster_are_known_and_others_asked_for() {
    run(async {
        let upstream = knowing(1).await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let (_, web) = found(&resolver, "web.default.svc.cluster.local.").await;
        assert_eq!(web, ["web.default.svc.cluster.local. 10.96.0.20"]);
        assert_eq!(upstream.asked.load(Ordering::Relaxed), 0);
        let (code, answers) = found(&resolver, "ExAmple.com.").await;
        assert_eq!((code, answers), (ResponseCode::NoError, vec!["ExAmple.com. 192.0.2.1".into()]));
        let reply = ask(&resolver, &query("example.com.", RecordType::A), Transport::Udp).await;
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
        let (code, _) = found(&resolver, "nobody.default.svc.cluster.local.").await;
        assert_eq!(code, ResponseCode::NXDomain);
        let counters = resolver.counters();
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        assert_eq!((count(&counters.cluster), count(&counters.outside)), (2, 2));
    });
}

/// DNS-131: whoever asks too often over connections is refused; datagrams are counted elsewhere.
#[test]
fn client_that_asks_too_often_is_refused() {
    run(async {
        let resolver = Resolver::new(|_| true);
        let mut tables = tables();
        tables.settings.as_mut().unwrap().client_rate = 2;
        resolver.configure(Config::Full(&tables.encode_to_vec())).unwrap();
        let query = query("web.default.svc.cluster.local.", RecordType::A);
        let mut codes = Vec::new();
        for _ in 0..8 {
            codes.push(ask(&resolver, &query, Transport::Tcp).await.metadata.response_code);
        }
        assert_eq!(codes[..2], [ResponseCode::NoError; 2]);
        assert!(codes.contains(&ResponseCode::Refused), "{codes:?}");
        for _ in 0..8 {
            let reply = ask(&resolver, &query, Transport::Udp).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        }
    });
}

/// DNS-108: what was asked is not asked again while it lives, in whatever letters.
#[test]
fn answers_are_kept_while_they_live() {
    run(async {
        let upstream = knowing(1).await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        for name in ["example.com.", "EXAMPLE.com.", "example.COM."] {
            assert_eq!(found(&resolver, name).await.1.len(), 1);
        }
        assert_eq!(upstream.asked.load(Ordering::Relaxed), 1);
        let counters = resolver.counters();
        assert_eq!(counters.outside.load(Ordering::Relaxed), 3);
        assert_eq!(counters.cached.load(Ordering::Relaxed), 2);
        assert_eq!(counters.took.up_to().1, 3);
    });
}

/// DNS-107: the same at the same time is asked once.
#[test]
fn same_question_is_asked_once_at_a_time() {
    run(async {
        let upstream = server(|query, _| {
            std::thread::sleep(Duration::from_millis(50));
            let answers = vec![address(query.queries[0].name(), 300, 9)];
            Some(reply_to(query, ResponseCode::NoError, answers))
        })
        .await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let all = (0..50).map(|_| found(&resolver, "example.com."));
        let all = futures::future::join_all(all).await;
        assert!(all.iter().all(|(_, answers)| answers.len() == 1));
        assert_eq!(upstream.asked.load(Ordering::Relaxed), 1);
    });
}

/// DNS-101, DNS-110: the longest domain decides, and nobody answers for another's names.
#[test]
fn longest_stub_domain_decides() {
    run(async {
        let (usual, corp, lab) = (knowing(1).await, knowing(2).await, knowing(3).await);
        let stubs = BTreeMap::from([
            ("corp.example".to_owned(), clear(&[corp.address])),
            ("lab.Corp.example.".to_owned(), clear(&[lab.address])),
        ]);
        let resolver = resolver(&[usual.address], &stubs);
        for (name, last) in [
            ("a.corp.example.", 2),
            ("corp.example.", 2),
            ("a.lab.corp.example.", 3),
            ("xcorp.example.", 1),
            ("example.", 1),
        ] {
            let answers = vec![format!("{name} 192.0.2.{last}")];
            assert_eq!(found(&resolver, name).await, (ResponseCode::NoError, answers));
        }
    });
}

/// DNS-011, DNS-080: an alias of the cluster's, then what its target has; an alias in between as well.
#[test]
fn alias_is_followed_to_other_servers() {
    run(async {
        let upstream = server(|query, _| {
            let asked = query.queries[0].name().clone();
            let real = Name::from_ascii("real.example.com.").unwrap();
            let alias = RData::CNAME(CNAME(real.clone()));
            let answers = vec![Record::from_rdata(asked, 60, alias), address(&real, 30, 7)];
            Some(reply_to(query, ResponseCode::NoError, answers))
        })
        .await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let (code, answers) = found(&resolver, "ext.default.svc.cluster.local.").await;
        assert_eq!(code, ResponseCode::NoError);
        let expected = [
            "ext.default.svc.cluster.local. db.example.com.",
            "db.example.com. real.example.com.",
            "real.example.com. 192.0.2.7",
        ];
        assert_eq!(answers, expected);
    });
}

/// DNS-093: what a search list leads to is asked for at once; if it is not there, the first name is not.
#[test]
fn search_list_is_gone_through_at_once() {
    run(async {
        let upstream = server(|query, _| {
            let name = query.queries[0].name().clone();
            let (code, answers) = match name.to_lowercase().to_string().starts_with("here.") {
                true => (ResponseCode::NoError, vec![address(&name, 60, 9)]),
                false => (ResponseCode::NXDomain, vec![]),
            };
            Some(reply_to(query, code, answers))
        })
        .await;
        let mut tables = tables();
        tables.settings.as_mut().unwrap().autopath = true;
        tables.namespaces = vec![DnsNamespace { number: 1, name: "default".into() }];
        let IpAddr::V4(local) = LOCAL else { panic!() };
        tables.pods_v4 = [local.octets(), (1 << 31 | 1_u32).to_be_bytes()].concat();
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        resolver.configure(Config::Full(&tables.encode_to_vec())).unwrap();
        let first = "here.example.default.svc.cluster.local.";
        let (code, answers) = found(&resolver, first).await;
        assert_eq!(code, ResponseCode::NoError);
        assert_eq!(answers, [format!("{first} here.example."), "here.example. 192.0.2.9".into()]);
        let gone = found(&resolver, "gone.example.default.svc.cluster.local.").await;
        assert_eq!(gone, (ResponseCode::NXDomain, vec![]));
    });
}

/// DNS-082: that the target does not exist is said of the alias, and a failure is one.
#[test]
fn alias_says_what_its_target_says() {
    run(async {
        let gone = server(|query, _| {
            let mut reply = reply_to(query, ResponseCode::NXDomain, vec![]);
            let name = Name::from_ascii("example.com.").unwrap();
            let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 60);
            reply.add_authority(Record::from_rdata(name, 60, RData::SOA(soa)));
            Some(reply)
        })
        .await;
        let alias = "ext.default.svc.cluster.local.";
        let to_gone = resolver(&[gone.address], &StubDomains::new());
        let reply = ask(&to_gone, &query(alias, RecordType::A), Transport::Udp).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!((reply.answers.len(), reply.authorities.len()), (1, 1));
        let failing = server(|q, _| Some(reply_to(q, ResponseCode::ServFail, vec![]))).await;
        let to_failing = resolver(&[failing.address], &StubDomains::new());
        assert_eq!(found(&to_failing, alias).await.0, ResponseCode::ServFail);
    });
}

/// DNS-103: a server that is silent costs a client no answer.
#[test]
fn silent_server_is_passed_over() {
    run(async {
        let (silent, other) = (server(|_, _| None).await, knowing(5).await);
        let resolver = resolver(&[silent.address, other.address], &StubDomains::new());
        for name in ["a.example.", "b.example.", "c.example."] {
            assert_eq!(found(&resolver, name).await.1, [format!("{name} 192.0.2.5")]);
        }
    });
}

/// DNS-103: nobody answers, and the client is told before it gives up.
#[test]
fn client_is_told_if_nobody_answers() {
    run(async {
        let silent = server(|_, _| None).await;
        let nobody = resolver(&[], &StubDomains::new());
        assert_eq!(found(&nobody, "example.com.").await.0, ResponseCode::ServFail);
        let resolver = resolver(&[silent.address], &StubDomains::new());
        assert_eq!(found(&resolver, "example.com.").await.0, ResponseCode::ServFail);
        assert_eq!(resolver.counters().failed.load(Ordering::Relaxed), 1);
    });
}

/// DNS-104: an answer that was cut is asked for again over TCP, and never kept as a whole one.
#[test]
fn answer_that_was_cut_is_asked_for_over_tcp() {
    run(async {
        let upstream = server(|query, transport| {
            let name = query.queries[0].name();
            let count = if transport == Transport::Tcp { 100 } else { 1 };
            let answers = (0..count).map(|n| address(name, 300, n)).collect();
            let mut reply = reply_to(query, ResponseCode::NoError, answers);
            reply.metadata.truncation = transport == Transport::Udp;
            Some(reply)
        })
        .await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let mut query = query("many.example.", RecordType::A);
        let whole = ask(&resolver, &query, Transport::Tcp).await;
        assert!(whole.answers.len() == 100 && !whole.metadata.truncation);
        // DNS-052, DNS-053, DNS-054: and what is cut for this client says so.
        let cut = ask(&resolver, &query, Transport::Udp).await;
        assert!(cut.metadata.truncation && cut.to_vec().unwrap().len() <= 512);
        assert!(cut.edns.is_none() && !cut.answers.is_empty());
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        query.edns = Some(edns);
        let cut = ask(&resolver, &query, Transport::Udp).await;
        let length = cut.to_vec().unwrap().len();
        assert!(cut.metadata.truncation && (512..=1232).contains(&length) && cut.edns.is_some());
    });
}

/// One that is spoken to over TLS, and the certificate that it has.
async fn tls_server(name: &str, last: u8) -> (SocketAddr, RootCertStore) {
    let own = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![own.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut message = vec![0; usize::from(length)];
                    stream.read_exact(&mut message).await.unwrap();
                    let query = Message::from_vec(&message).unwrap();
                    let answers = vec![address(query.queries[0].name(), 300, last)];
                    let reply = reply_to(&query, ResponseCode::NoError, answers).to_vec().unwrap();
                    stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    (at, roots)
}

/// DNS-112: over TLS, if the certificate is the server's; else it is not asked at all.
#[test]
fn server_with_a_certificate_is_asked_over_tls() {
    run(async {
        let (at, roots) = tls_server("dns.example", 7).await;
        for (name, roots, found_there) in [
            ("dns.example", roots.clone(), true),
            ("other.example", roots, false),
            ("dns.example", RootCertStore::empty(), false),
        ] {
            let server = Upstream { address: at, tls: Some(name.to_owned()) };
            let resolver = resolver(&[], &StubDomains::new());
            resolver.set_upstreams(Upstreams::new(&[server], &StubDomains::new(), roots).unwrap());
            let expected = match found_there {
                true => (ResponseCode::NoError, vec!["x.example. 192.0.2.7".to_owned()]),
                false => (ResponseCode::ServFail, vec![]),
            };
            assert_eq!(found(&resolver, "x.example.").await, expected, "{name}");
        }
    });
}

/// DNS-105: what is no answer to our query is none.
#[test]
fn answer_with_another_number_is_not_taken() {
    run(async {
        let forger = server(|query, _| {
            let mut reply = reply_to(query, ResponseCode::NoError, vec![]);
            reply.add_answers([address(query.queries[0].name(), 300, 66)]);
            reply.metadata.id = query.metadata.id.wrapping_add(1);
            Some(reply)
        })
        .await;
        let resolver = resolver(&[forger.address], &StubDomains::new());
        let (code, answers) = found(&resolver, "forged.example.").await;
        assert_eq!((code, answers), (ResponseCode::ServFail, vec![]));
    });
}

/// DNS-106: a client that asks when too many wait is told so at once, and names of the cluster do not wait.
#[test]
fn so_many_queries_wait_and_no_more() {
    run(async {
        let silent = server(|_, _| None).await;
        let resolver = resolver(&[silent.address], &StubDomains::new());
        let mut waiting = Vec::new();
        for number in 0..WAITING_MAX {
            let resolver = Arc::clone(&resolver);
            let name = format!("{number}.example.");
            waiting.push(tokio::spawn(async move { found(&resolver, &name).await }));
        }
        let all_wait = async {
            while resolver.waiting.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, all_wait).await.unwrap();
        assert_eq!(found(&resolver, "more.example.").await.0, ResponseCode::Refused);
        assert_eq!(
            found(&resolver, "web.default.svc.cluster.local.").await.0,
            ResponseCode::NoError
        );
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

/// DNS-065: a client that asks for no recursion, and one that asks for everything.
#[test]
fn nobody_is_asked_for_what_is_not_served() {
    run(async {
        let upstream = knowing(1).await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let mut no_recursion = query("example.com.", RecordType::A);
        no_recursion.metadata.recursion_desired = false;
        let reply = ask(&resolver, &no_recursion, Transport::Udp).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
        let any = ask(&resolver, &query("example.com.", RecordType::ANY), Transport::Udp).await;
        assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
        assert_eq!(upstream.asked.load(Ordering::Relaxed), 0);
    });
}

/// DNS-113: servers that ask us.
#[test]
fn loop_is_found() {
    run(async {
        let honest = knowing(1).await;
        let resolver = resolver(&[honest.address], &StubDomains::new());
        assert!(!resolver.loops().await);
        let socket = UdpSocket::bind((LOCAL, 0)).await.unwrap();
        let own = socket.local_addr().unwrap();
        tokio::spawn(serve_udp(Arc::clone(&resolver), socket));
        resolver.set_upstreams(upstreams(&[own], &StubDomains::new()));
        assert!(resolver.loops().await);
        resolver.set_upstreams(upstreams(&[honest.address], &StubDomains::new()));
        assert!(!resolver.loops().await);
    });
}

/// DNS-070, DNS-071: queries over one connection, cut anywhere, several at once.
#[test]
fn connection_carries_many_queries() {
    run(async {
        let upstream = knowing(1).await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let own = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(resolver, listener));
        let mut stream = TcpStream::connect(own).await.unwrap();
        let mut bytes = Vec::new();
        for id in 0..40 {
            let name = if id % 2 == 0 { "web.default.svc.cluster.local." } else { "a.example." };
            let mut query = query(name, RecordType::A);
            query.metadata.id = id;
            let query = query.to_vec().unwrap();
            bytes.extend(u16::try_from(query.len()).unwrap().to_be_bytes());
            bytes.extend(query);
        }
        for part in bytes.chunks(7) {
            stream.write_all(part).await.unwrap();
        }
        let mut ids = Vec::new();
        for _ in 0..40 {
            let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
            let mut reply = vec![0; usize::from(length)];
            stream.read_exact(&mut reply).await.unwrap();
            let reply = Message::from_vec(&reply).unwrap();
            assert_eq!(reply.answers.len(), 1);
            ids.push(reply.metadata.id);
        }
        ids.sort_unstable();
        assert_eq!(ids, (0..40).collect::<Vec<_>>());
        drop(stream);
    });
}

/// DNS-072: a client that opens connections and says nothing keeps no other out.
#[test]
fn silent_connections_of_one_client_are_bounded() {
    run(async {
        let other = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        let resolver = Resolver::new(|_| true);
        resolver.configure(Config::Full(&tables().encode_to_vec())).unwrap();
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(resolver, listener));
        let connect = async |from: IpAddr| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(from, 0)).unwrap();
            socket.connect(at).await.unwrap()
        };
        let mut silent = Vec::new();
        for _ in 0..1024 {
            silent.push(connect(LOCAL).await);
        }
        let mut one_more = connect(LOCAL).await;
        assert_eq!(timeout(SOON, one_more.read(&mut [0])).await.unwrap().unwrap(), 0);
        for from in [other, LOCAL] {
            // One that is closed leaves its place.
            silent.pop();
            let message = query("web.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
            let reply = async {
                loop {
                    let mut stream = connect(from).await;
                    stream.write_u16(message.len().try_into().unwrap()).await.unwrap();
                    if stream.write_all(&message).await.is_err() {
                        continue;
                    }
                    if let Ok(length) = stream.read_u16().await {
                        return length;
                    }
                }
            };
            assert!(timeout(SOON, reply).await.unwrap() > 12);
        }
    });
}

/// DNS-114: strangers get nothing.
#[test]
fn strangers_get_no_answer() {
    run(async {
        let resolver = Resolver::new(|client| client != LOCAL);
        let socket = UdpSocket::bind((LOCAL, 0)).await.unwrap();
        let own = socket.local_addr().unwrap();
        tokio::spawn(serve_udp(Arc::clone(&resolver), socket));
        let client = UdpSocket::bind((LOCAL, 0)).await.unwrap();
        let query = query("a.cluster.local.", RecordType::A).to_vec().unwrap();
        client.send_to(&query, own).await.unwrap();
        let nothing = timeout(Duration::from_millis(300), client.recv(&mut [0; 512])).await;
        assert!(nothing.is_err());
        assert_eq!(resolver.counters().strangers.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn servers_of_a_resolv_conf_are_read() {
    let text = "search a.b\nnameserver 192.0.2.1\n# nameserver 192.0.2.9\nnameserver 2001:db8::1\noptions ndots:5\n";
    let servers: Vec<_> = servers_of(text).iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    assert!(servers_of("").is_empty());
    assert!(servers_of("nameserver nonsense").is_empty());
}

#[test]
fn upstreams_that_are_none_are_refused() {
    let stubs = BTreeMap::from([("a..b".to_owned(), clear(&[SocketAddr::new(LOCAL, 53)]))]);
    let refusal = Upstreams::new(&[], &stubs, RootCertStore::empty()).unwrap_err().to_string();
    assert_eq!(refusal, "`a..b` is no name of a domain");
}
