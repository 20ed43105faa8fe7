//! Names as they are looked up: their labels in small letters, in wire form.

use domain::base::ToName;

/// Longest name in bytes, its root label included.
const NAME_MAX: usize = 255;
/// Most labels of a name, its root label included.
const LABELS_MAX: usize = 128;

/// A name whose letters are small.
#[derive(Clone, Debug)]
pub(crate) struct LowerName {
    bytes: [u8; NAME_MAX],
    len: usize,
    /// Where each label begins, at the byte of its length; the root label is the last.
    starts: [u8; LABELS_MAX],
    labels: usize,
}

impl PartialEq for LowerName {
    fn eq(&self, other: &Self) -> bool {
        self.bytes[..self.len] == other.bytes[..other.len]
    }
}

impl LowerName {
    pub(crate) fn new<N: ToName + ?Sized>(name: &N) -> Self {
        let mut lower = Self { bytes: [0; NAME_MAX], len: 0, starts: [0; LABELS_MAX], labels: 0 };
        for label in name.iter_labels() {
            lower.push(label.as_slice());
        }
        lower
    }

    /// What a name cannot hold is left out: `domain` has no such names.
    fn push(&mut self, label: &[u8]) {
        let end = self.len + 1 + label.len();
        let (Some(room), Some(start)) =
            (self.bytes.get_mut(self.len..end), self.starts.get_mut(self.labels))
        else {
            return;
        };
        *start = self.len as u8;
        room[0] = label.len() as u8;
        room[1..].copy_from_slice(label);
        room[1..].make_ascii_lowercase();
        self.len = end;
        self.labels += 1;
    }

    /// Number of labels, the root label included.
    pub(crate) fn labels(&self) -> usize {
        self.labels
    }

    fn start(&self, label: usize) -> usize {
        self.starts[..self.labels].get(label).map_or(self.len, |start| usize::from(*start))
    }

    /// The text of a label, counted from the left.
    pub(crate) fn label(&self, at: usize) -> &[u8] {
        self.bytes.get(self.start(at)..self.start(at + 1)).and_then(|l| l.get(1..)).unwrap_or(&[])
    }

    /// Labels `from..to` in wire form.
    pub(crate) fn wire(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(self.start(from)..self.start(to)).unwrap_or(&[])
    }

    /// All of it in wire form.
    pub(crate) fn as_wire(&self) -> &[u8] {
        self.wire(0, self.labels)
    }

    /// Number of labels before `zone`; `None` if the name does not end with it.
    pub(crate) fn labels_before(&self, zone: &Self) -> Option<usize> {
        let before = self.labels.checked_sub(zone.labels)?;
        (self.wire(before, self.labels) == zone.as_wire()).then_some(before)
    }
}

/// Wire form of the labels of `text`, parted by dots, without a root label, in small letters. `None` if
/// one is empty or longer than 63 bytes.
pub(crate) fn wire_of(labels: &[&str]) -> Option<Box<[u8]>> {
    let mut wire = Vec::with_capacity(labels.iter().map(|l| l.len() + 1).sum());
    for label in labels {
        if !is_label(label) {
            return None;
        }
        wire.push(label.len() as u8);
        wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    Some(wire.into())
}

pub(crate) fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
}
