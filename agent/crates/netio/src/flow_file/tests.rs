//! Files in a temporary directory.

use std::path::PathBuf;

use super::*;

fn file(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("flows")
}

#[test]
fn records_survive_reopen() {
    let directory = tempfile::tempdir().unwrap();
    let flows = FlowFile::<20>::open(&file(&directory), 10).unwrap();
    assert_eq!(flows.load().count(), 0);
    assert!(flows.store(3, &[7; 20]));
    assert!(flows.store(4, &[0; 20]));
    assert!(flows.store(9, &[9; 20]));
    flows.erase(4);
    assert!(!flows.store(10, &[1; 20]));
    drop(flows);
    let flows = FlowFile::<20>::open(&file(&directory), 10).unwrap();
    let found: Vec<_> = flows.load().collect();
    assert_eq!(found, [(3, [7; 20]), (9, [9; 20])]);
}

#[test]
fn records_keep_their_place_when_the_capacity_changes() {
    let directory = tempfile::tempdir().unwrap();
    let flows = FlowFile::<8>::open(&file(&directory), 4).unwrap();
    flows.store(1, &[1; 8]);
    flows.store(3, &[3; 8]);
    drop(flows);
    let flows = FlowFile::<8>::open(&file(&directory), 1000).unwrap();
    assert_eq!(flows.load().collect::<Vec<_>>(), [(1, [1; 8]), (3, [3; 8])]);
    drop(flows);
    let flows = FlowFile::<8>::open(&file(&directory), 2).unwrap();
    assert_eq!(flows.load().collect::<Vec<_>>(), [(1, [1; 8])]);
}

#[test]
fn room_is_taken_as_records_come() {
    let directory = tempfile::tempdir().unwrap();
    let room = || std::fs::metadata(file(&directory)).unwrap().blocks() * 512;
    let chunk = CHUNK as u64;
    let flows = FlowFile::<1000>::open(&file(&directory), 10_000).unwrap();
    assert!(room() <= chunk);
    flows.erase(9_999);
    assert_eq!((flows.get(9_999), flows.load().count()), (None, 0));
    assert!(room() <= chunk);
    assert!(flows.store(9_999, &[1; 1000]));
    // At the border of two chunks.
    let border = (CHUNK - HEADER_LEN) / 1008;
    assert!(flows.store(border, &[2; 1000]));
    assert!((2 * chunk..=4 * chunk).contains(&room()), "{}", room());
    drop(flows);
    let flows = FlowFile::<1000>::open(&file(&directory), 10_000).unwrap();
    assert_eq!(flows.load().collect::<Vec<_>>(), [(border, [2; 1000]), (9_999, [1; 1000])]);
    assert!(room() <= 4 * chunk);
}

#[test]
fn file_system_without_room_for_all_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let opened = FlowFile::<1000>::open(&file(&directory), 1 << 32);
    assert!(matches!(opened, Err(FlowFileError::NoSpace { .. })), "{opened:?}");
}

#[test]
fn other_record_length_empties_the_file() {
    let directory = tempfile::tempdir().unwrap();
    FlowFile::<8>::open(&file(&directory), 4).unwrap().store(1, &[1; 8]);
    let flows = FlowFile::<16>::open(&file(&directory), 4).unwrap();
    assert_eq!(flows.load().count(), 0);
}

#[test]
fn torn_record_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    FlowFile::<16>::open(&file(&directory), 2).unwrap().store(0, &[5; 16]);
    let mut bytes = std::fs::read(file(&directory)).unwrap();
    bytes[HEADER_LEN + 8 + 9] ^= 1;
    std::fs::write(file(&directory), bytes).unwrap();
    let flows = FlowFile::<16>::open(&file(&directory), 2).unwrap();
    assert_eq!(flows.load().count(), 0);
}

#[test]
fn second_user_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _first = FlowFile::<16>::open(&file(&directory), 2).unwrap();
    let second = FlowFile::<16>::open(&file(&directory), 2);
    assert!(matches!(second, Err(FlowFileError::Busy)));
}

#[test]
fn impossible_capacity_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for capacity in [0, usize::MAX] {
        let opened = FlowFile::<16>::open(&file(&directory), capacity);
        assert!(matches!(opened, Err(FlowFileError::Capacity { .. })));
    }
}
