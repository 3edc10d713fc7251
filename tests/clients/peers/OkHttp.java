// Clients of OkHttp, which follows a redirect by HTTP. Java runs this file as it is.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.WebSocket;
import okhttp3.WebSocketListener;

public class OkHttp {
  static final OkHttpClient http = new OkHttpClient();
  static final ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor();
  static final Map<Integer, Client> clients = new ConcurrentHashMap<>();

  static class Client extends WebSocketListener {
    final int number;
    final String door;
    volatile WebSocket socket;
    volatile boolean arrived;

    Client(int number, String door) {
      this.number = number;
      this.door = door;
    }

    void dial() {
      if (clients.get(number) != this) return;
      arrived = false;
      socket = http.newWebSocket(new Request.Builder().url(door).build(), this);
    }

    void over(Integer code, String reason) {
      if (arrived) say("\"client\":" + number + ",\"event\":\"left\",\"code\":" + code + ",\"reason\":" + quoted(reason));
      arrived = false;
      clock.schedule(this::dial, 100 + ThreadLocalRandom.current().nextInt(400), TimeUnit.MILLISECONDS);
    }

    @Override public void onOpen(WebSocket socket, Response response) {
      arrived = true;
      say("\"client\":" + number + ",\"event\":\"arrived\",\"port\":" + response.request().url().port());
    }

    @Override public void onMessage(WebSocket socket, String text) {
      say("\"client\":" + number + ",\"event\":\"frame\",\"text\":" + quoted(text));
    }

    @Override public void onClosing(WebSocket socket, int code, String reason) {
      socket.close(1000, null);
      over(code, reason);
    }

    @Override public void onFailure(WebSocket socket, Throwable error, Response response) {
      over(null, "");
    }
  }

  static synchronized void say(String fields) {
    System.out.println("{" + fields + "}");
    System.out.flush();
  }

  static String quoted(String text) {
    return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
  }

  // The orders are flat objects, and their texts plain words and URLs.
  static final Pattern FIELD = Pattern.compile("\"(\\w+)\": (?:\"([^\"]*)\"|(\\w+))");

  public static void main(String[] arguments) throws Exception {
    say("\"event\":\"ready\"");
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = lines.readLine()) != null; ) {
      Map<String, String> order = new HashMap<>();
      for (Matcher field = FIELD.matcher(line); field.find(); ) {
        order.put(field.group(1), field.group(2) != null ? field.group(2) : field.group(3));
      }
      int number = Integer.parseInt(order.get("client"));
      switch (order.get("do")) {
        case "start" -> {
          Client client = new Client(number, order.get("door"));
          clients.put(number, client);
          client.dial();
        }
        case "send" -> clients.get(number).socket.send(order.get("text"));
        case "stop" -> clients.remove(number).socket.cancel();
      }
    }
    System.exit(0);
  }
}
