// What both carriers offer beyond Conn, for use inside this package.

package nodelink

import (
	"context"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// carrier is a Conn with what a hub and a client need of it.
type carrier interface {
	Conn
	// receive hands the next frame to deliver, with its binary form where the carrier has it at hand (else nil), which is
	// valid during the call only. A link that has ended gives a *CloseError.
	receive(ctx context.Context, deliver func(f *nodev1.Frame, binary []byte)) error
	// sendBinary is Send for a frame in its binary form, which must not be changed any more.
	sendBinary(b []byte) error
	// closeWith is Close with a close code. Frames that wait are still sent, within closeGrace.
	closeWith(code int, reason string)
	// abort ends the link at once.
	abort(reason string)
	// setLiveness says after which silence to ping the other side, and after which to give the link up.
	setLiveness(idle, silence time.Duration)
	// reserve makes room for n frames that were queued before the link was up.
	reserve(n int)
	// wait returns when the link has ended and its goroutines with it.
	wait()
}

// refuse says why in an error frame, and closes the link.
func refuse(c carrier, v *violation) {
	_ = c.Send(&nodev1.Frame{Payload: &nodev1.Frame_Error{Error: ToError("", v.err)}}) // the close says it too
	c.closeWith(v.code, v.err.Error())
}

// asCarrier dresses a Conn from elsewhere; those of this package are carriers already.
func asCarrier(c Conn) carrier {
	if k, ok := c.(carrier); ok {
		return k
	}
	return plain{c}
}

type plain struct{ Conn }

func (p plain) receive(ctx context.Context, deliver func(*nodev1.Frame, []byte)) error {
	f, err := p.Recv(ctx)
	if err == nil {
		deliver(f, nil)
	}
	return err
}

func (p plain) sendBinary(b []byte) error {
	f, err := Binary{}.Decode(b)
	if err != nil {
		return err
	}
	return p.Send(f)
}

func (p plain) closeWith(_ int, reason string)           { p.Close(reason) }
func (p plain) abort(reason string)                      { p.Close(reason) }
func (p plain) setLiveness(time.Duration, time.Duration) {}
func (p plain) reserve(int)                              {}
func (p plain) wait()                                    { <-p.Done() }
