// A static Go program: its own scheduler, its own system calls, data in memory, goroutines, a ticker, a child.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

const answers = "/agent/data/answers"
const workers = 1000

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func ask(id, kind string) {
	end := ""
	defer func() {
		must(os.WriteFile(answers+"/"+id+".end", []byte(end+"\n"), 0o644))
	}()
	request, err := http.NewRequest("POST", os.Getenv("ORB_PROXY_URL")+"/"+kind, bytes.NewBufferString("{}"))
	must(err)
	request.Header.Set("x-question", id)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		end = err.Error()
		return
	}
	defer response.Body.Close()
	out, err := os.OpenFile(answers+"/"+id, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(err)
	defer out.Close()
	if _, err := io.Copy(out, response.Body); err != nil {
		end = err.Error()
	}
}

func main() {
	must(os.MkdirAll(answers, 0o755))
	memory := make([]byte, 40<<20)
	_, err := rand.Read(memory)
	must(err)
	digest := sha256.Sum256(memory)
	life := fmt.Sprintf("%x", digest[:8])

	child := exec.Command("cat")
	stdin, err := child.StdinPipe()
	must(err)
	pipe, err := child.StdoutPipe()
	must(err)
	stdout := bufio.NewReader(pipe)
	must(child.Start())

	var beats int64
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			atomic.AddInt64(&beats, 1)
		}
	}()
	inboxes, outbox := make([]chan int, workers), make(chan int, workers)
	for index := range inboxes {
		inboxes[index] = make(chan int)
		go func(inbox chan int) {
			for number := range inbox {
				outbox <- number
			}
		}(inboxes[index])
	}

	var turn sync.Mutex
	checks := 0
	check := func() error {
		checks++
		if sha256.Sum256(memory) != digest {
			return fmt.Errorf("memory has changed")
		}
		fmt.Fprintf(stdin, "%d\n", checks)
		line, err := stdout.ReadString('\n')
		if err != nil || line != fmt.Sprintf("%d\n", checks) {
			return fmt.Errorf("echo of the child: %q %v", line, err)
		}
		for _, inbox := range inboxes {
			inbox <- checks
		}
		for range inboxes {
			if number := <-outbox; number != checks {
				return fmt.Errorf("a goroutine said %d, expected %d", number, checks)
			}
		}
		return nil
	}
	http.HandleFunc("/report", func(response http.ResponseWriter, _ *http.Request) {
		turn.Lock()
		defer turn.Unlock()
		var problem any
		if err := check(); err != nil {
			problem = err.Error()
		}
		counts := map[string]int64{"checks": int64(checks), "beats of a ticker": atomic.LoadInt64(&beats)}
		must(json.NewEncoder(response).Encode(map[string]any{"life": life, "counts": counts, "problem": problem}))
	})
	http.HandleFunc("/ask", func(response http.ResponseWriter, request *http.Request) {
		go ask(request.URL.Query().Get("id"), request.URL.Query().Get("kind"))
		fmt.Fprint(response, "{}")
	})
	go func() {
		time.Sleep(100 * time.Millisecond)
		fmt.Println("ready")
	}()
	must(http.ListenAndServe("127.0.0.1:8000", nil))
}
