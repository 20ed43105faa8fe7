//! What a packet needs of a Service port, packed into lines of the CPU's cache.
//!
//! A port begins with a line of its own: a header, then records of backends, up to five of IPv4. So
//! most ports are one line, and the claim leads right there. No record is in two lines. If there are
//! backends of both families, those of IPv6 begin with a line of their own. The ports of a Service
//! follow each other; together they are a block.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::backend::{Backend, RECORD_V4, RECORD_V6};
use crate::service::{Configured, Numbers, Port};

const LINE: usize = 64;
/// Bytes before the records of a port's first line.
const HEADER: usize = LINE - 5 * RECORD_V4;
/// Service, number of records of IPv4 and of IPv6, port, node port, protocol, flags.
type Header = [u8; HEADER];

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u8; LINE]);

// Flags of a header.
const INTERNAL_LOCAL: u8 = 1;
const EXTERNAL_LOCAL: u8 = 2;
const AFFINITY: u8 = 4;
const RANGES: u8 = 8;

/// How many records of each family.
#[derive(Clone, Copy, Debug)]
struct Counts {
    v4: u32,
    v6: u32,
}

impl Counts {
    /// In so many bytes of records, which no memory has too many of.
    fn new(v4: usize, v6: usize) -> Self {
        Self { v4: (v4 / RECORD_V4) as u32, v6: (v6 / RECORD_V6) as u32 }
    }

    fn of(port: &Port) -> Self {
        Self::new(port.backends_v4.len(), port.backends_v6.len())
    }

    /// Lines before the first of IPv6.
    #[inline]
    fn lines_v4(self) -> usize {
        const { assert!((LINE - HEADER) / RECORD_V4 == 5 && LINE / RECORD_V4 == 7) };
        match self.v4 {
            0 => 0,
            v4 => 1 + v4.saturating_sub(5).div_ceil(7) as usize,
        }
    }

    fn lines(self) -> usize {
        const { assert!((LINE - HEADER) / RECORD_V6 == 2 && LINE / RECORD_V6 == 3) };
        match self.v4 {
            0 => 1 + self.v6.saturating_sub(2).div_ceil(3) as usize,
            _ => self.lines_v4() + self.v6.div_ceil(3) as usize,
        }
    }
}

/// Lines of a port whose records take so many bytes.
pub(crate) fn lines(bytes_v4: usize, bytes_v6: usize) -> usize {
    Counts::new(bytes_v4, bytes_v6).lines()
}

/// A port of a Service, read where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served<'a> {
    first: &'a Line,
    /// All lines after it.
    rest: &'a [Line],
}

impl<'a> Served<'a> {
    #[inline]
    fn header(self) -> &'a Header {
        self.first.0.first_chunk().unwrap_or(&[0; HEADER])
    }

    /// Place of the Service in the tables.
    #[inline]
    pub(crate) fn service(self) -> u32 {
        let [a, b, c, d, ..] = *self.header();
        u32::from_le_bytes([a, b, c, d])
    }

    #[inline]
    fn counts(self) -> Counts {
        let [_, _, _, _, a, b, c, d, e, f, g, h, ..] = *self.header();
        Counts { v4: u32::from_le_bytes([a, b, c, d]), v6: u32::from_le_bytes([e, f, g, h]) }
    }

    pub(crate) fn numbers(self) -> Numbers {
        let [.., p0, p1, n0, n1, protocol, _, _] = *self.header();
        Numbers {
            protocol,
            port: u16::from_le_bytes([p0, p1]),
            node_port: u16::from_le_bytes([n0, n1]),
        }
    }

    #[inline]
    fn has(self, flag: u8) -> bool {
        let [.., flags, _] = *self.header();
        flags & flag != 0
    }

    #[inline]
    pub(crate) fn internal_local(self) -> bool {
        self.has(INTERNAL_LOCAL)
    }

    #[inline]
    pub(crate) fn external_local(self) -> bool {
        self.has(EXTERNAL_LOCAL)
    }

    #[inline]
    pub(crate) fn has_affinity(self) -> bool {
        self.has(AFFINITY)
    }

    #[inline]
    pub(crate) fn has_ranges(self) -> bool {
        self.has(RANGES)
    }

    /// All backends of IPv4.
    #[inline]
    pub(crate) fn v4(self) -> impl Iterator<Item = Backend> + use<'a> {
        let first = self.first.0[HEADER..].as_chunks().0;
        records(first, self.rest, self.counts().v4 as usize).map(Backend::v4)
    }

    /// All backends of IPv6.
    #[inline]
    pub(crate) fn v6(self) -> impl Iterator<Item = Backend> + use<'a> {
        let counts = self.counts();
        let (first, lines) = match counts.lines_v4().checked_sub(1) {
            None => (self.first.0[HEADER..].as_chunks().0, self.rest),
            Some(others) => (&[][..], self.rest.get(others..).unwrap_or_default()),
        };
        records(first, lines, counts.v6 as usize).map(Backend::v6)
    }
}

/// Records that begin in a part of a line, and go on in lines.
#[inline]
fn records<'a, const N: usize>(
    first: &'a [[u8; N]],
    lines: &'a [Line],
    count: usize,
) -> impl Iterator<Item = &'a [u8; N]> {
    let others = lines.iter().flat_map(|line| line.0.as_chunks().0);
    let others = others.take(count.saturating_sub(first.len()));
    first.iter().take(count).chain(others)
}

/// Writes bytes of records where [`records`] reads them.
fn write<const N: usize>(first: &mut [[u8; N]], lines: &mut [Line], bytes: &[u8]) {
    let places = first.iter_mut().chain(lines.iter_mut().flat_map(|l| l.0.as_chunks_mut().0));
    places.zip(bytes.as_chunks().0).for_each(|(place, record)| *place = *record);
}

/// The ports of which a block is made, each with its first line.
pub(crate) fn placed(
    block: Range<u32>,
    ports: &[Port],
) -> impl Iterator<Item = (u32, Numbers)> + Clone {
    ports.iter().scan(block.start, |next, port| {
        let line = *next;
        *next += Counts::of(port).lines() as u32;
        Some((line, port.numbers))
    })
}

/// Writes a port into lines that have room for it.
fn write_port(lines: &mut [Line], service: u32, flags: u8, port: &Port) {
    let Some((first, rest)) = lines.split_first_mut() else { return };
    let counts = Counts::of(port);
    let [a, b, c, d] = service.to_le_bytes();
    let [e, f, g, h] = counts.v4.to_le_bytes();
    let [i, j, k, l] = counts.v6.to_le_bytes();
    let Numbers { protocol, port: number, node_port } = port.numbers;
    let [m, n] = number.to_le_bytes();
    let [o, p] = node_port.to_le_bytes();
    let header: Header = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, protocol, flags, 0];
    first.0[..HEADER].copy_from_slice(&header);
    let first = &mut first.0[HEADER..];
    write::<RECORD_V4>(first.as_chunks_mut().0, rest, &port.backends_v4);
    let (first, rest) = match counts.lines_v4().checked_sub(1) {
        None => (first.as_chunks_mut().0, rest),
        Some(others) => (&mut [][..], rest.get_mut(others..).unwrap_or_default()),
    };
    write::<RECORD_V6>(first, rest, &port.backends_v6);
}

/// Blocks of all Services.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    lines: Vec<Line>,
    /// First lines of free blocks, by their number of lines.
    free: BTreeMap<u32, Vec<u32>>,
}

impl Blocks {
    /// With room for so many lines.
    pub(crate) fn with_capacity(lines: usize) -> Self {
        Self { lines: Vec::with_capacity(lines), free: BTreeMap::new() }
    }

    /// Lines that are not free.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        let free = self.free.iter().map(|(lines, blocks)| *lines as usize * blocks.len());
        self.lines.len() - free.sum::<usize>()
    }

    /// The port that begins with this line.
    #[inline]
    pub(crate) fn port(&self, line: u32) -> Option<Served<'_>> {
        let (first, rest) = self.lines.get(line as usize..)?.split_first()?;
        Some(Served { first, rest })
    }

    /// The ports in a block, in their order, each with its first line.
    pub(crate) fn ports(&self, block: Range<u32>) -> impl Iterator<Item = (u32, Numbers)> {
        let mut next = block.start;
        std::iter::from_fn(move || {
            let line = next;
            let port = (line < block.end).then(|| self.port(line))??;
            next += port.counts().lines() as u32;
            Some((line, port.numbers()))
        })
    }

    /// Adds a block with the ports of the Service that has this place; `None` if there are too many
    /// lines for their numbers.
    pub(crate) fn add(&mut self, place: u32, service: &Configured) -> Option<Range<u32>> {
        let lines = service.ports.iter().map(|port| Counts::of(port).lines()).sum::<usize>();
        let block = self.allocate(u32::try_from(lines).ok()?)?;
        let flags = [
            (service.internal_local, INTERNAL_LOCAL),
            (service.external_local, EXTERNAL_LOCAL),
            (service.kept.affinity_s != 0, AFFINITY),
            (!service.kept.source_ranges.is_empty(), RANGES),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
        let mut lines = self.lines.get_mut(block.start as usize..block.end as usize)?;
        for port in &service.ports {
            let (own, rest) = lines.split_at_mut_checked(Counts::of(port).lines())?;
            write_port(own, place, flags, port);
            lines = rest;
        }
        Some(block)
    }

    /// Removes a block that was added.
    pub(crate) fn remove(&mut self, block: Range<u32>) {
        if !block.is_empty() {
            self.free.entry(block.end - block.start).or_default().push(block.start);
        }
    }

    /// Takes the smallest free block that is large enough, and gives back what is too much.
    fn allocate(&mut self, lines: u32) -> Option<Range<u32>> {
        if lines == 0 {
            return Some(0..0);
        }
        let Some((&held, blocks)) = self.free.range_mut(lines..).next() else {
            return self.append(lines);
        };
        let start = blocks.pop();
        if blocks.is_empty() {
            self.free.remove(&held);
        }
        let start = start?;
        self.remove(start + lines..start + held);
        Some(start..start + lines)
    }

    /// New lines at the end. They grow by an eighth when there is no room, as they are by far the
    /// most of all that is kept.
    fn append(&mut self, lines: u32) -> Option<Range<u32>> {
        let start = u32::try_from(self.lines.len()).ok()?;
        let end = start.checked_add(lines)?;
        if self.lines.capacity() < end as usize {
            self.lines.reserve_exact((lines as usize).max(self.lines.len() / 8));
        }
        self.lines.resize(end as usize, Line([0; LINE]));
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_fuzz::Random;

    use super::*;
    use crate::service::Service;

    fn any_port(random: &mut Random) -> Port {
        let records = |random: &mut Random, length| {
            let end = random.pick(&[1, 4, 7, 30]);
            (0..length * random.below(end)).map(|_| random.byte()).collect()
        };
        Port {
            numbers: Numbers {
                protocol: random.byte(),
                port: random.next() as u16,
                node_port: random.next() as u16,
            },
            backends_v4: records(random, RECORD_V4),
            backends_v6: records(random, RECORD_V6),
        }
    }

    fn any_service(random: &mut Random) -> Configured {
        let ranges = (0..random.below(2))
            .map(|_| crate::address::Prefix::new(crate::address::Address::v4(0), 0).unwrap());
        Configured {
            kept: Service {
                name: "ns/any".into(),
                frontends: [].into(),
                affinity_s: random.below(2) as u32,
                source_ranges: ranges.collect(),
            },
            ports: (0..random.below(4)).map(|_| any_port(random)).collect(),
            internal_local: random.below(2) == 0,
            external_local: random.below(2) == 0,
        }
    }

    fn assert_holds(blocks: &Blocks, block: &Range<u32>, place: u32, service: &Configured) {
        let ports: Vec<_> = blocks.ports(block.clone()).collect();
        assert!(placed(block.clone(), &service.ports).eq(ports.iter().copied()));
        assert_eq!(ports.len(), service.ports.len());
        for ((line, _), port) in ports.into_iter().zip(&service.ports) {
            let served = blocks.port(line).unwrap();
            assert_eq!((served.service(), served.numbers()), (place, port.numbers));
            assert!(served.v4().eq(port.backends_v4.as_chunks().0.iter().map(Backend::v4)));
            assert!(served.v6().eq(port.backends_v6.as_chunks().0.iter().map(Backend::v6)));
            assert_eq!(served.internal_local(), service.internal_local);
            assert_eq!(served.external_local(), service.external_local);
            assert_eq!(served.has_affinity(), service.kept.affinity_s != 0);
            assert_eq!(served.has_ranges(), !service.kept.source_ranges.is_empty());
        }
    }

    /// What is added and removed at random is there, whole, until it is removed.
    #[test]
    fn blocks_hold_what_was_added() {
        let mut random = Random::new(3);
        let (mut blocks, mut held) = (Blocks::default(), BTreeMap::new());
        for step in 0..4000 {
            let place = random.below(30) as u32;
            if let Some((block, _)) = held.remove(&place) {
                blocks.remove(block);
            }
            if random.below(4) > 0 {
                let service = any_service(&mut random);
                held.insert(place, (blocks.add(place, &service).unwrap(), service));
            }
            let lines: usize = held.values().map(|(block, _)| block.len()).sum();
            assert_eq!(blocks.used(), lines);
            if step % 8 == 0 {
                held.iter().for_each(|(place, (b, s))| assert_holds(&blocks, b, *place, s));
            }
        }
        // At most three ports of up to 29 records of each family.
        assert!(blocks.lines.len() < 30 * 3 * 15, "what is free is not used again");
    }

    /// A port with five backends of IPv4, or two of IPv6, is a line.
    #[test]
    fn port_takes_few_lines() {
        let of = |v4, v6| lines(v4 * RECORD_V4, v6 * RECORD_V6);
        assert_eq!([of(0, 0), of(5, 0), of(0, 2)], [1; 3]);
        assert_eq!([of(6, 0), of(12, 0), of(0, 5), of(1, 3)], [2; 4]);
        assert_eq!([of(13, 0), of(0, 6), of(12, 3), of(5, 4)], [3; 4]);
        assert_eq!(align_of::<Line>(), size_of::<Line>());
    }

    /// When there is no more room, it grows by less than it is.
    #[test]
    fn reserved_room_is_enough_and_grows_by_an_eighth() {
        let mut random = Random::new(9);
        let mut services: Vec<_> = (0..1000).map(|_| any_service(&mut random)).collect();
        let ports = services.iter().flat_map(|service| &service.ports);
        let room: usize = ports.map(|port| Counts::of(port).lines()).sum();
        let mut blocks = Blocks::with_capacity(room);
        for service in &services {
            blocks.add(0, service).unwrap();
        }
        assert_eq!((blocks.lines.len(), blocks.lines.capacity()), (room, room));
        services.retain(|service| !service.ports.is_empty());
        blocks.add(0, &services[0]).unwrap();
        assert_eq!(blocks.lines.capacity(), room + room / 8);
    }
}
