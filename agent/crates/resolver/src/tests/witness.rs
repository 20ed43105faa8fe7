//! Who hears of answers before they go out.

use futures::future::BoxFuture;
use hickory_resolver::proto::rr::rdata::AAAA;

use super::*;

/// Cares for one client, and says the same to everything.
struct Ear {
    says: bool,
    heard: parking_lot::Mutex<Vec<Found>>,
}

impl Witness for Ear {
    fn cares(&self, client: IpAddr) -> bool {
        client == LOCAL
    }

    fn hear(&self, _client: IpAddr, found: Found) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.heard.lock().push(found);
            self.says
        })
    }
}

fn ear(resolver: &Resolver, says: bool) -> Arc<Ear> {
    let ear = Arc::new(Ear { says, heard: parking_lot::Mutex::default() });
    resolver.set_witness(ear.clone());
    ear
}

fn heard(names: &[&str], addresses: &[&str], ttl: u64) -> Found {
    Found {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ttl: Duration::from_secs(ttl),
    }
}

fn alias(owner: &Name, ttl: u32, target: &str) -> Record {
    let target = Name::from_ascii(target).unwrap();
    Record::from_rdata(owner.clone(), ttl, RData::CNAME(CNAME(target)))
}

/// NP-153, NP-158, NP-160, NP-166, DNS-133: what is told is what the client is told, of the cluster's names and of others, over both
/// transports and from the cache.
#[test]
fn answers_are_heard_before_they_go_out() {
    run(async {
        let upstream = server(|query, _| {
            let name = query.queries[0].name();
            let target = Name::from_ascii("cdn.example.net.").unwrap();
            let data = match query.queries[0].query_type() {
                RecordType::AAAA => RData::AAAA(AAAA("2001:db8::1".parse().unwrap())),
                _ => RData::A(A(Ipv4Addr::new(192, 0, 2, 1))),
            };
            let answers =
                vec![alias(name, 60, "cdn.example.net."), Record::from_rdata(target, 30, data)];
            Some(reply_to(query, ResponseCode::NoError, answers))
        })
        .await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        let ear = ear(&resolver, true);
        for transport in [Transport::Udp, Transport::Tcp] {
            for rtype in [RecordType::A, RecordType::AAAA] {
                let reply = ask(&resolver, &query("API.example.com.", rtype), transport).await;
                assert_eq!(reply.answers.len(), 2);
                let ttl = reply.answers.iter().map(|r| r.ttl).min().unwrap();
                let address = if rtype == RecordType::A { "192.0.2.1" } else { "2001:db8::1" };
                let names = ["api.example.com", "cdn.example.net"];
                let said = ear.heard.lock().pop().unwrap();
                assert_eq!(said, heard(&names, &[address], ttl.into()));
            }
        }
        found(&resolver, "web.default.svc.cluster.local.").await;
        let web = heard(&["web.default.svc.cluster.local"], &["10.96.0.20"], 5);
        assert_eq!(ear.heard.lock().pop(), Some(web));
        // Of nothing there is nothing to hear.
        found(&resolver, "nobody.default.svc.cluster.local.").await;
        ask(&resolver, &query("example.com.", RecordType::TXT), Transport::Udp).await;
        assert_eq!(ear.heard.lock().pop(), None);
    });
}

/// NP-153: what does not work is not told.
#[test]
fn answer_that_nobody_could_use_is_not_told() {
    run(async {
        let upstream = knowing(1).await;
        let resolver = resolver(&[upstream.address], &StubDomains::new());
        ear(&resolver, false);
        for name in ["example.com.", "web.default.svc.cluster.local."] {
            assert_eq!(found(&resolver, name).await, (ResponseCode::ServFail, vec![]));
        }
        let bytes = query("example.com.", RecordType::A).to_vec().unwrap();
        let other = "127.0.0.2".parse().unwrap();
        let reply = resolver.answer(&bytes, Transport::Udp, other).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
    });
}

/// Addresses of other names than the one asked for are none of its own, and no name is taken for another.
#[test]
fn only_the_chain_of_the_name_counts() {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let answer = |asked: &str, answers: Vec<Record>| {
        let message = query(asked, RecordType::A);
        Found::in_answer(&reply_to(&message, ResponseCode::NoError, answers))
    };
    let of = |owner: &str, last| address(&name(owner), 9, last);
    let mixed = vec![of("b.", 2), alias(&name("A."), 7, "b."), of("c.", 3), of("a.", 1)];
    assert_eq!(answer("a.", mixed), Some(heard(&["a", "b"], &["192.0.2.2"], 7)));
    assert_eq!(answer("a.", vec![of("b.", 1)]), None);
    let round = vec![alias(&name("a."), 7, "b."), alias(&name("b."), 7, "a.")];
    assert_eq!(answer("a.", round), None);
    let dotted = Name::from_labels([&b"x.example"[..], b"com"]).unwrap();
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(dotted.clone(), RecordType::A));
    let reply = reply_to(&message, ResponseCode::NoError, vec![address(&dotted, 9, 1)]);
    assert_eq!(Found::in_answer(&reply), None);
}
