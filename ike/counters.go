package ike

// Counter names one of the counters of IKE messages, in strongSwan's order. Each message counts
// once: what comes again because an answer got lost does not, and neither does a fragment.
type Counter uint8

// The counters.
const (
	CountRekeyInit  Counter = iota // IKE SAs that were rekeyed, at our wish
	CountRekeyResp                 // and at the peer's
	CountChildRekey                // CHILD SAs that were rekeyed
	CountInvalid                   // messages against the format, or that fail the integrity check
	CountInvalidSPI                // messages for an IKE SA that is not here
	countMessages                  // by exchange: requests and responses received, and sent
	NumCounters     = countMessages + 4*Counter(exchangesCounted)
)

// exchangesCounted is how many exchanges are counted, from IKE_SA_INIT on.
const exchangesCounted = ExchangeInformational - ExchangeInit + 1

// counterNames are strongSwan's, those of messages without the direction.
var counterNames = [...]string{"ike-rekey-init", "ike-rekey-resp", "child-rekey", "invalid", "invalid-spi"}

var (
	exchangeNames  = [exchangesCounted]string{"ike-init", "ike-auth", "create-child", "info"}
	directionNames = [...]string{"-in-req", "-in-resp", "-out-req", "-out-resp"}
)

// String returns strongSwan's name of the counter.
func (c Counter) String() string {
	if c < countMessages {
		return counterNames[c]
	}
	n := int(c - countMessages)
	return enumName(exchangeNames[:], n/4, "exchange") + directionNames[n%4]
}

// Counters are values by Counter.
type Counters [NumCounters]uint64

// Counters visits the counters of all messages, under the name "", and then those of each
// connection that has counted something. A message belongs to a connection from when it is known
// whose it is. What visit gets is valid during the visit.
func (m *Machine) Counters(visit func(conn string, c *Counters)) {
	visit("", &m.counts)
	for _, s := range m.conns {
		if s.counts != nil {
			visit(s.conn.Name, s.counts)
		}
	}
}

// ResetCounters sets the counters of a connection to nothing; "": those of all messages; with
// each: those of every connection.
func (m *Machine) ResetCounters(conn string, each bool) {
	if conn == "" && !each {
		m.counts = Counters{}
		return
	}
	for _, s := range m.conns {
		if each || s.conn.Name == conn {
			s.counts = nil
		}
	}
}

// count adds one to a counter; sa may be nil.
func (m *Machine) count(sa *ikeSA, c Counter) {
	m.counts[c]++
	if sa == nil || sa.conn == nil {
		return
	}
	for _, s := range m.conns {
		if s.conn == sa.conn || s.conn.Name == sa.conn.Name {
			if s.counts == nil {
				s.counts = new(Counters)
			}
			s.counts[c]++
			return
		}
	}
}

// countMessage counts a message that was received or is sent for the first time.
func (m *Machine) countMessage(sa *ikeSA, h *Header, sent bool) {
	x := h.Exchange - ExchangeInit
	if x >= exchangesCounted {
		return // strongSwan does not count the others either
	}
	c := countMessages + 4*Counter(x)
	if sent {
		c += 2
	}
	if h.Flags&FlagResponse != 0 {
		c++
	}
	m.count(sa, c)
}

// countParsed counts the message at hand as one that was received, or as an invalid one.
func (m *Machine) countParsed(sa *ikeSA, err error) {
	if err != nil {
		m.count(sa, CountInvalid)
		return
	}
	m.countMessage(sa, &m.msg.Header, false)
}
