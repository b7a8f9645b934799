package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"postern/esp"
)

// stateSeqs is the name of the file with the sequence numbers that keys have used.
const stateSeqs = "manual.seq"

// The kept form: a version, then for each key its ID and a number.
const (
	seqFileVersion = 1
	seqRecordLen   = 16 + 8
	// maxSeqRecords is what the state directory takes in one file of 4 KiB. Records are never
	// dropped: a key that comes back must find its own.
	maxSeqRecords = 170
)

// seqID stands for a key and a direction.
type seqID [16]byte

// seqIDOf returns the ID of the key whose numbers must not come again: that of the cipher, with its
// salt, or where there is none that of the integrity transform. Everything else about the SA may
// change and the number goes on.
func seqIDOf(dir byte, sa *esp.SA) (id seqID) {
	key := sa.EncrKey
	if len(key) == 0 {
		key = sa.IntegKey
	}
	h := sha256.New()
	_, _ = h.Write([]byte("postern sequence numbers"))
	_, _ = h.Write([]byte{dir})
	_, _ = h.Write(key)
	var sum [sha256.Size]byte
	copy(id[:], h.Sum(sum[:0]))
	return id
}

// seqRecord is the last number that a key has used, or may have used.
type seqRecord struct {
	id seqID
	n  uint64
}

// seqFile is what is kept of the numbers. The zero value has not been read yet.
type seqFile struct {
	read bool
	list []seqRecord
}

var errSeqFile = errors.New("it is damaged: give the manual SAs new keys and remove it")

// open reads the file, once. After an error no number may be used.
func (f *seqFile) open(k *keeper) error {
	if f.read {
		return nil
	}
	if k.dir == nil {
		return errNoState
	}
	b, err := k.dir.Load(stateSeqs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%s: %w", stateSeqs, err)
	default:
		if f.list, err = decodeSeqs(b); err != nil {
			return fmt.Errorf("%s: %w", stateSeqs, err)
		}
	}
	f.read = true
	return nil
}

// decodeSeqs reads the kept form.
func decodeSeqs(b []byte) (list []seqRecord, err error) {
	if len(b) == 0 || b[0] != seqFileVersion || (len(b)-1)%seqRecordLen != 0 || len(b) > 1+maxSeqRecords*seqRecordLen {
		return nil, errSeqFile
	}
	for b = b[1:]; len(b) > 0; b = b[seqRecordLen:] {
		list = append(list, seqRecord{seqID(b[:16]), binary.BigEndian.Uint64(b[16:])})
	}
	return list, nil
}

// get returns the number of a key; 0: it has used none.
func (f *seqFile) get(id seqID) uint64 {
	for i := range f.list {
		if f.list[i].id == id {
			return f.list[i].n
		}
	}
	return 0
}

// put sets numbers and writes all down. When it returns nil they are on the disk; else the file is
// as it was, or has them.
func (f *seqFile) put(k *keeper, records ...seqRecord) error {
	if k.dir == nil || !f.read {
		return errNoState
	}
	for _, r := range records {
		f.set(r)
	}
	if len(f.list) > maxSeqRecords {
		f.list = f.list[:maxSeqRecords]
		return fmt.Errorf("%s has no room for more keys: give all manual SAs new keys and remove it", stateSeqs)
	}
	b := make([]byte, 0, 1+len(f.list)*seqRecordLen)
	b = append(b, seqFileVersion)
	for i := range f.list {
		b = append(b, f.list[i].id[:]...)
		b = binary.BigEndian.AppendUint64(b, f.list[i].n)
	}
	return k.dir.Store(stateSeqs, b)
}

func (f *seqFile) set(r seqRecord) {
	for i := range f.list {
		if f.list[i].id == r.id {
			f.list[i].n = r.n
			return
		}
	}
	f.list = append(f.list, r)
}
