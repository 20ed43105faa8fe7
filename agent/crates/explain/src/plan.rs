//! What has to be asked of which node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_model::{NodeName, Snapshot};
use weft_proto::v1::{
    EndAnswer, EndAnswers, EndQuestion, ExplainRequest, ExplainResponse, ExplainedConnection, Ports,
};

use crate::AskError;
use crate::combine::{End, combine};
use crate::party::{Party, Place, Target};
use crate::port::Wanted;
use crate::service::{Reached, of_node_port};

/// All that has to be known to answer one request.
#[derive(Clone, Debug)]
pub struct Plan {
    from: String,
    to: String,
    connections: Vec<Connection>,
    questions: BTreeMap<NodeName, Vec<EndQuestion>>,
    notes: Vec<String>,
}

/// Between two addresses.
#[derive(Clone, Debug)]
struct Connection {
    from: (IpAddr, String),
    to: (IpAddr, String),
    service_port: String,
    egress: Judge,
    ingress: Judge,
}

/// Who judges one end.
#[derive(Clone, Debug)]
enum Judge {
    /// It is no pod.
    Nobody,
    /// The node, asked by its question of this place.
    Node(NodeName, usize),
    /// A pod of which it is not known where it is.
    Unknown,
}

impl Plan {
    /// Finds out which connections are meant.
    ///
    /// # Errors
    /// [`AskError`] if something is not understood or not there.
    pub fn new(snapshot: &Snapshot, request: &ExplainRequest) -> Result<Self, AskError> {
        let from = Party::source(snapshot, &request.from)?;
        let to = Target::read(snapshot, &request.to)?;
        let wanted = Wanted::read(&request.port)?;
        let name = match &to {
            Target::Party(party) => in_words(party, &request.to),
            Target::Service { service, .. } => format!("Service {}", service.name),
        };
        let mut plan = Self {
            from: in_words(&from, &request.from),
            to: name,
            connections: Vec::new(),
            questions: BTreeMap::new(),
            notes: Vec::new(),
        };
        match &to {
            Target::Party(party) => plan.add_party(snapshot, &from, party, &wanted)?,
            Target::Service { service, address } => {
                let reached =
                    Reached { snapshot, service, from: &from, address: *address, at_node: None };
                plan.add_service(&reached, &wanted)?;
            }
        }
        if plan.connections.is_empty() && plan.notes.is_empty() {
            return Err(AskError::Families { from: plan.from, to: plan.to });
        }
        Ok(plan)
    }

    /// What each node is to be asked.
    #[must_use]
    pub fn questions(&self) -> &BTreeMap<NodeName, Vec<EndQuestion>> {
        &self.questions
    }

    /// Puts together what nodes answered; an error says why one did not.
    #[must_use]
    pub fn answer(
        self,
        answers: &BTreeMap<NodeName, Result<EndAnswers, String>>,
    ) -> ExplainResponse {
        let mut notes = self.notes;
        for (node, answer) in answers {
            let said = answer.iter().flat_map(|answer| &answer.notes);
            notes.extend(said.map(|note| format!("node {node}: {note}")));
        }
        let connections = self.connections.iter().map(|connection| {
            let end = |judge: &Judge| end(judge, answers);
            ExplainedConnection {
                from: connection.from.0.to_string(),
                to: connection.to.0.to_string(),
                from_name: connection.from.1.clone(),
                to_name: connection.to.1.clone(),
                service_port: connection.service_port.clone(),
                ports: combine(&end(&connection.egress), &end(&connection.ingress)),
            }
        });
        ExplainResponse { from: self.from, to: self.to, connections: connections.collect(), notes }
    }

    fn add_party(
        &mut self,
        snapshot: &Snapshot,
        from: &Party,
        to: &Party,
        wanted: &Wanted,
    ) -> Result<(), AskError> {
        for source in &from.addresses {
            let Some(address) = to.address(source) else { continue };
            if let Place::Node(node) = &to.place
                && let Some((service, port)) = of_node_port(snapshot, wanted, address)
            {
                let line = format!(
                    "port {wanted} of node {node} is a node port of Service {}: a process of the node there is not reached",
                    service.name
                );
                if !self.notes.contains(&line) {
                    self.notes.push(line);
                }
                let at_node = Some(node.clone());
                let address = Some(address);
                let reached = Reached { snapshot, service, from, address, at_node };
                let index = service.ports.iter().position(|p| p == port).unwrap_or_default();
                self.translated(&reached, (index, port), *source);
                continue;
            }
            for ports in wanted.at(to.pod(), &to.name)? {
                self.connect((*source, from), (address, to), ports, String::new());
            }
        }
        Ok(())
    }

    fn add_service(&mut self, reached: &Reached<'_>, wanted: &Wanted) -> Result<(), AskError> {
        for port in reached.ports(wanted)? {
            for source in &reached.from.addresses {
                if reached.has_family(source) {
                    self.translated(reached, port, *source);
                }
            }
        }
        Ok(())
    }

    fn translated(
        &mut self,
        reached: &Reached<'_>,
        port: (usize, &weft_model::ServicePort),
        source: IpAddr,
    ) {
        let mut notes = std::mem::take(&mut self.notes);
        let all = reached.translated(port, source, &mut notes);
        self.notes = notes;
        for one in all {
            let backend = Party::at(reached.snapshot, one.to);
            // Who is seen may be the node on the way.
            let hidden = (one.source != source).then(|| Party::at(reached.snapshot, one.source));
            let from = hidden.as_ref().unwrap_or(reached.from);
            self.connect((one.source, from), (one.to, &backend), Some(one.port), one.service_port);
        }
    }

    fn connect(
        &mut self,
        (source, from): (IpAddr, &Party),
        (address, to): (IpAddr, &Party),
        ports: Option<Ports>,
        service_port: String,
    ) {
        let egress = self.ask(from, true, (source, address), ports);
        let ingress = self.ask(to, false, (address, source), ports);
        let (from, to) = ((source, from.name.clone()), (address, to.name.clone()));
        self.connections.push(Connection { from, to, service_port, egress, ingress });
    }

    fn ask(
        &mut self,
        party: &Party,
        egress: bool,
        (pod, peer): (IpAddr, IpAddr),
        ports: Option<Ports>,
    ) -> Judge {
        let node = match &party.place {
            Place::Pod { node: Some(node), .. } => node.clone(),
            Place::Pod { node: None, .. } => return Judge::Unknown,
            Place::Node(_) | Place::Outside => return Judge::Nobody,
        };
        let questions = self.questions.entry(node.clone()).or_default();
        let (pod, peer) = (pod.to_string(), peer.to_string());
        questions.push(EndQuestion { egress, pod, peer, ports });
        Judge::Node(node, questions.len() - 1)
    }
}

fn end<'a>(judge: &Judge, answers: &'a BTreeMap<NodeName, Result<EndAnswers, String>>) -> End<'a> {
    match judge {
        Judge::Nobody => End::NoPod,
        Judge::Unknown => End::Unknown {
            node: String::new(),
            why: "it is not known on which node the pod is".to_owned(),
        },
        Judge::Node(name, place) => {
            let node = name.to_string();
            let answer = match answers.get(name) {
                Some(Ok(answers)) => answers,
                Some(Err(why)) => return End::Unknown { node, why: why.clone() },
                None => return End::Unknown { node, why: "it was not asked".to_owned() },
            };
            let one: Option<&EndAnswer> = answer.answers.get(*place);
            match one.filter(|one| !one.ports.is_empty()) {
                Some(one) => End::Told { node, ports: &one.ports },
                None if answer.error.is_empty() => {
                    End::Unknown { node, why: "it gave no answer".to_owned() }
                }
                None => End::Unknown { node, why: answer.error.clone() },
            }
        }
    }
}

/// What was found, beside what was written.
fn in_words(party: &Party, text: &str) -> String {
    let text = text.trim();
    if party.name == text
        || party.name.ends_with(&format!("/{text}"))
        || party.name.ends_with(&format!(" {text}"))
    {
        return party.name.clone();
    }
    match party.place {
        Place::Outside => format!("{text}, {}", party.name),
        Place::Pod { .. } | Place::Node(_) => format!("{} ({text})", party.name),
    }
}
