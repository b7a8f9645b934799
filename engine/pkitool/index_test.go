package pkitool

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestIndexReadsBack(t *testing.T) {
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	x := &index{
		crl:     7,
		issued:  []issued{{"00ff", at, at.AddDate(1, 0, 0), "CN=two  blanks, O=x"}, {"01", at, at, ""}},
		revoked: []revoked{{"00ff", at, 9}, {"abcd", at, 0}},
	}
	got, err := parseIndex(x.text())
	if err != nil || !bytes.Equal(got.text(), x.text()) {
		t.Fatalf("%v: %s", err, x.text())
	}
	if i, ok := got.find("00ff"); !ok || i.subject != "CN=two  blanks, O=x" || !i.to.Equal(at.AddDate(1, 0, 0)) {
		t.Errorf("found %+v", i)
	}
	if _, ok := got.find("02"); ok {
		t.Error("found what was not issued")
	}
	if r, ok := got.isRevoked("abcd"); !ok || r.reason != 0 {
		t.Errorf("revoked: %+v", r)
	}
	for text, words := range map[string]string{
		"":                                "empty",
		"crl 3\n":                         "line 1",
		indexHead + "\ncrl -1\n":          "line 2",
		indexHead + "\ncrl 1\ncrl\n":      "line 3",
		indexHead + "\nissued 01 x y z\n": "line 2",
		indexHead + "\nrevoked 01 2027-01-02T03:04:05Z 11\n":                                                                           "line 2",
		indexHead + "\nrevoked 0G 2027-01-02T03:04:05Z 1\n":                                                                            "line 2",
		indexHead + "\nrevoked 01 2027-01-02T03:04:05Z 1\nrevoked 01 2027-01-02T03:04:05Z 1\n":                                         "line 3",
		indexHead + "\nissued 01 2027-01-02T03:04:05Z 2027-01-02T03:04:05Z x\nissued 01 2027-01-02T03:04:05Z 2027-01-02T03:04:05Z x\n": "line 3",
		strings.Repeat("x", maxIndex+1):                                                                                                "too large",
	} {
		if _, err := parseIndex([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%.40q: %v, expected %q", text, err, words)
		}
	}
}

// FuzzIndex holds that what is read is written back the same, and that nothing panics.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(indexHead + "\ncrl 3\nissued 5b0f 2026-11-22T08:30:00Z 2029-02-24T08:30:00Z C=CH, CN=plant\nrevoked 5b0f 2026-12-01T07:00:00Z 1\n"))
	f.Add([]byte(indexHead))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := parseIndex(data)
		if err != nil {
			return
		}
		again, err := parseIndex(x.text())
		if err != nil || !bytes.Equal(again.text(), x.text()) {
			t.Errorf("%q: %v", x.text(), err)
		}
	})
}

// FuzzShow holds that no file makes a command panic or write control characters.
func FuzzShow(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte{0x30, 3, 2, 1, 0})
	for _, d := range fuzzSeeds(f) {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, o := range objects(data) {
			x := facts{file: "x"}
			if x.tell(o, "x", "", 0o600, noon) != nil {
				continue
			}
			all := []facts{x}
			for _, text := range []string{factsText(all), factsJSON(all)} {
				if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 }) {
					t.Errorf("control characters: %q", text)
				}
			}
		}
	})
}

// fuzzSeeds are one of each kind of object in DER.
func fuzzSeeds(f *testing.F) [][]byte {
	k, err := newSigner("ed25519")
	if err != nil {
		f.Fatal(err)
	}
	der, err := privatePEM(k, true)
	if err != nil {
		f.Fatal(err)
	}
	key, err := parseKey("k", der, nil)
	if err != nil {
		f.Fatal(err)
	}
	dn, err := parseDN("C=CH, CN=x")
	if err != nil {
		f.Fatal(err)
	}
	tmpl, err := endEntity(dn, names{dns: []string{"x.example"}})
	if err != nil {
		f.Fatal(err)
	}
	tmpl.NotBefore, tmpl.NotAfter = noon, noon.AddDate(1, 0, 0)
	cert, err := makeCert(tmpl, key.Public(), nil, k)
	if err != nil {
		f.Fatal(err)
	}
	return [][]byte{der, key.Public().SPKI(), cert.Raw}
}
